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
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import ModelRecord
from shared.datasets import Sample, shard_members
from shared.diffusion.flow import image_seed
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.imaging.copying import BLOCK, crop_copying
from shared.jobs import Context
from shared.settings import settings

ATTEMPTS = 3  # at an image that does not copy its crops
IN_FLIGHT = 3
"""Batches that a Triton server is asked for at a time, so that it never waits for us."""
WAIT_SECONDS = 120.0
"""For a Triton server that is starting."""

Generate = Callable[..., NDArray[np.uint8]]


def sampler_of(
    context: Context, request: DatasetRequest, model: ModelRecord
) -> tuple[Generate, int]:
    """Where images are made: (generate, batches at a time).

    A Triton server that has started anew is waited for, and told to load the version.

    Raises:
        InputError: a Triton server is configured, and this version is not published.
        ServingError: the server does not answer, or cannot load the version.
    """
    options = request.sampling(model).model_dump() | {
        "use_map": request.condition in {"both", "map"},
        "use_crops": request.condition in {"both", "crops"},
    }
    url = settings().triton_url
    if not url:
        found = load_model(context.store, request.model, request.version, context.device)
        return partial(found.generate, **options), 1
    from shared.serving.client import Server, TritonSampler
    from shared.serving.repository import served

    numbers = [
        each.number
        for each in served(context.store, request.model).versions
        if each.version == request.version and each.sha256 == model.sha256
    ]
    if not numbers:
        raise InputError(
            f"Triton at {url} does not serve {request.model}/{request.version}: "
            f"run 'htd publish --model {request.model}/{request.version}', or unset HTD_TRITON_URL"
        )
    server = Server(url)
    server.wait(WAIT_SECONDS)
    if not server.serves(request.model, numbers[-1]):
        server.load(request.model, numbers[-1], model.size)
    sampler = TritonSampler(url, request.model, numbers[-1])
    return partial(sampler.generate, **options), IN_FLIGHT


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
