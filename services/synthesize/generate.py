"""Generating the images of a shard, in this process or on Triton.

Batches are generated and encoded as PNG in threads, while the next batch is composed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.synthesize.compose import Composer, Composition
from services.synthesize.gate import Gate
from shared.arrays import UInt8
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest
from shared.datasets.samples import Sample, shard_members
from shared.diffusion.crops import Crop
from shared.jobs import Context
from shared.serving.generator import open_generator

ATTEMPTS = 5
"""Number of times that an image is generated until the gate lets it pass."""

IN_FLIGHT = 3
"""Number of batches that are requested from a Triton server at a time, to keep it busy."""

BATCH = {"cpu": 16, "cuda": 64}
"""Number of images that are made at a time, by device; fewer do not fill a GPU."""

Generate = Callable[[UInt8, Sequence[Sequence[Crop]], Sequence[int]], UInt8]
"""Makes images from label maps, crops and seeds; see `Generator.generate`."""


def open_generate(
    context: Context, request: DatasetRequest, model: ModelRecord
) -> tuple[Generate, int, int]:
    """Open the generator of a request; raises the errors of `open_generator`.

    Returns:
        The function that makes images, the number of images of a batch, and the number of batches
        to request at a time.
    """
    generator, remote = open_generator(context.store, model, context.device, tenant=context.tenant)
    generate = partial(
        generator.generate,
        sampling=request.sampling(model),
        use_map=request.use_map,
        use_crops=request.use_crops,
    )
    size = request.batch_size or BATCH[generator.device]
    return generate, size, IN_FLIGHT if remote else 1


@dataclass(frozen=True)
class GeneratedBatch:
    """The samples of a batch, their files in a shard (name, bytes), and how many were refused."""

    samples: list[Sample]
    members: list[tuple[str, bytes]]
    refused: int


def generate_batches(
    generate: Generate,
    composer: Composer,
    gate: Gate,
    batches: Iterable[list[Composition]],
    at_a_time: int,
) -> Iterator[GeneratedBatch]:
    """Generate batches in `at_a_time` threads, and yield them in order.

    An image that the gate refuses is composed and generated again, `ATTEMPTS` times in all, and
    then left out. An attempt depends on the request, the image's index and the attempt alone.
    """
    pending: deque[Future[GeneratedBatch]] = deque()
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            for batch in batches:
                context = copy_context()  # which holds the trace
                pending.append(pool.submit(context.run, _make, generate, composer, gate, batch))
                if len(pending) > at_a_time:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _make(
    generate: Generate, composer: Composer, gate: Gate, batch: list[Composition]
) -> GeneratedBatch:
    samples: list[Sample] = []
    count = 0
    for attempt in range(1, ATTEMPTS + 1):
        images = generate(
            np.stack([item.labels for item in batch]),
            [item.crops for item in batch],
            [item.provenance.seed for item in batch],
        )
        refused: list[Composition] = []
        for image, item in zip(images, batch, strict=True):
            found = gate.measure(image, item.crops)
            if gate.refuses(found):
                refused.append(item)
                continue
            update = {"copied": found.copied, "distance": found.distance}
            samples.append(Sample(image, item.labels, item.provenance.model_copy(update=update)))
        count += len(refused)
        if not refused or attempt == ATTEMPTS:
            break
        batch = [
            composer.compose(item.provenance.index, item.map_number, attempt) for item in refused
        ]
    samples.sort(key=lambda sample: sample.provenance.index)
    return GeneratedBatch(samples, list(shard_members(samples)), count)
