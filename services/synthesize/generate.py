"""Generating the images of a shard, in this process or on Triton.

Batches are generated and encoded as PNG in threads, while the next batch is composed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.synthesize.compose import Composition
from shared.arrays import UInt8
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest
from shared.datasets.samples import Sample, shard_members
from shared.diffusion.crops import Crop
from shared.imaging.copying import BLOCK, crop_copying
from shared.jobs import Context
from shared.seeds import image_seed
from shared.serving.generator import open_generator

ATTEMPTS = 3
"""Number of attempts to generate an image that does not copy its crops."""

IN_FLIGHT = 3
"""Number of batches that are requested from a Triton server at a time, to keep it busy."""

Generate = Callable[[UInt8, Sequence[Sequence[Crop]], Sequence[int]], UInt8]
"""Makes images from label maps, crops and seeds; see `Generator.generate`."""


def open_generate(
    context: Context, request: DatasetRequest, model: ModelRecord
) -> tuple[Generate, int]:
    """Open the generator of a request; raises the errors of `open_generator`.

    Returns:
        The function that makes images, and the number of batches to request at a time.
    """
    generator, remote = open_generator(context.store, model, context.device, tenant=context.tenant)
    generate = partial(
        generator.generate,
        sampling=request.sampling(model),
        use_map=request.use_map,
        use_crops=request.use_crops,
    )
    return generate, IN_FLIGHT if remote else 1


@dataclass(frozen=True)
class GeneratedBatch:
    """The samples of a batch, and their files in a shard: (name, bytes)."""

    samples: list[Sample]
    members: list[tuple[str, bytes]]


def generate_batches(
    generate: Generate,
    request: DatasetRequest,
    batches: Iterable[list[Composition]],
    at_a_time: int,
) -> Iterator[GeneratedBatch]:
    """Generate batches in `at_a_time` threads, and yield them in order."""
    pending: deque[Future[GeneratedBatch]] = deque()
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(_make, generate, request, batch))
                if len(pending) > at_a_time:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _make(generate: Generate, request: DatasetRequest, batch: list[Composition]) -> GeneratedBatch:
    samples = _samples(generate, request, batch)
    return GeneratedBatch(samples, list(shard_members(samples)))


def _samples(generate: Generate, request: DatasetRequest, batch: list[Composition]) -> list[Sample]:
    """Generate the samples of a batch.

    An image that copies a crop is generated again from another seed, and left out if that fails.
    """
    samples: list[Sample] = []
    for attempt in range(ATTEMPTS if request.max_copied is not None else 1):
        seeds = [
            image_seed(item.provenance.seed, attempt) if attempt else item.provenance.seed
            for item in batch
        ]
        images = generate(
            np.stack([item.labels for item in batch]),
            [item.crops for item in batch],
            seeds,
        )
        refused: list[Composition] = []
        for image, item, seed in zip(images, batch, seeds, strict=True):
            copied = None
            if request.max_copied is not None:
                shares = [
                    crop_copying(image, crop.pixels)
                    for crop in item.crops
                    if len(crop.pixels) >= BLOCK
                ]
                copied = max(shares, default=0.0)
                if copied > request.max_copied:
                    refused.append(item)
                    continue
            provenance = item.provenance.model_copy(update={"seed": seed, "copied": copied})
            samples.append(Sample(image, item.labels, provenance))
        batch = refused
        if not batch:
            break
    return sorted(samples, key=lambda sample: sample.provenance.index)
