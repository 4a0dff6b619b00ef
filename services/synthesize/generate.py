"""Generating the images of a shard: here or on Triton, while others are composed and packed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from services.synthesize.compose import Composition
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest
from shared.datasets.samples import Sample, shard_members
from shared.imaging.copying import BLOCK, crop_copying
from shared.jobs import Context
from shared.seeds import image_seed
from shared.serving.sampler import open_sampler

ATTEMPTS = 3  # at an image that does not copy its crops
IN_FLIGHT = 3
"""Batches that a Triton server is asked for at a time, so that it never waits for us."""

Generate = Callable[..., NDArray[np.uint8]]


def sampler_of(
    context: Context, request: DatasetRequest, model: ModelRecord
) -> tuple[Generate, int]:
    """Where images are made: (generate, batches at a time). Raises as `open_sampler` does."""
    options = request.sampling(model).model_dump() | {
        "use_map": request.condition in {"both", "map"},
        "use_crops": request.condition in {"both", "crops"},
    }
    sampler, remote = open_sampler(context.store, model, context.device)
    return partial(sampler.generate, **options), IN_FLIGHT if remote else 1


@dataclass(frozen=True)
class Made:
    """The images of a batch, and the files that they are in a shard."""

    samples: list[Sample]
    members: list[tuple[str, bytes]]


def made(
    generate: Generate,
    request: DatasetRequest,
    batches: Iterable[list[Composition]],
    at_a_time: int,
) -> Iterator[Made]:
    """Yield the batches' images in order; some batches ahead are made and encoded meanwhile."""
    pending: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(_make, generate, request, batch))
                if len(pending) > at_a_time:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()


def _make(generate: Generate, request: DatasetRequest, batch: list[Composition]) -> Made:
    samples = _samples(generate, request, batch)
    return Made(samples, list(shard_members(samples)))


def _samples(generate: Generate, request: DatasetRequest, batch: list[Composition]) -> list[Sample]:
    """Make the images of a batch; copies of a crop are made anew, and left out in the end."""
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
