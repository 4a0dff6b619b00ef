"""The inputs of speed benchmarks, the baseline pipeline, and how rates are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray

from heterotissue.study import counterparts
from services.synthesize.compose import Composer, Composition
from shared.contracts.models import ModelRecord
from shared.datasets.region_bank import RegionBank
from shared.diffusion.autoencoder import Autoencoder, decode_latents, encode_latents, to_pixels
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.flow import draw_noise
from shared.imaging.region_sets import load_region_set
from shared.storage import Store

UInt8 = NDArray[np.uint8]


BATCH = 16


@dataclass(frozen=True)
class Batch:
    """The inputs of one call: label maps, crops and seeds of its images."""

    labels: UInt8
    crops: list[Any]
    seeds: list[int]

    def row(self, number: int) -> Batch:
        """Return a batch of only one of the images."""
        part = slice(number, number + 1)
        return Batch(self.labels[part], self.crops[part], self.seeds[part])


Make = Callable[[Batch], UInt8]


class PlainPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The baseline: a plain diffusers pipeline in fp32 that computes guidance in a doubled batch.

    It uses diffusers' Euler scheduler, whose steps on the flow are equivalent to DDIM steps.
    """

    vae: Autoencoder
    denoiser: Denoiser
    scheduler: FlowMatchEulerDiscreteScheduler

    def __init__(self, vae: Any, denoiser: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, batch: Batch, steps: int = 50, guidance: float = 1.5) -> UInt8:
        branches = [(False, False), (True, True)]
        encoded = self.denoiser.encode_branches(
            batch.labels, batch.crops, branches, lambda images: encode_latents(self.vae, images)
        )
        side = batch.labels.shape[1] // int(self.denoiser.config.factor)
        shape = (int(self.vae.config.latent_channels), side, side)
        latents = draw_noise(batch.seeds, shape).to(self.device)
        self.scheduler.set_timesteps(steps)
        for time_step in self.scheduler.timesteps:
            times = time_step.expand(2 * len(latents)) / self.scheduler.config.num_train_timesteps
            times = times.to(self.device)
            nothing, both = self.denoiser(torch.cat([latents] * 2), times, encoded).chunk(2)
            velocity = nothing + guidance * (both - nothing)
            latents = self.scheduler.step(velocity, time_step, latents).prev_sample
        pixels: UInt8 = to_pixels(decode_latents(self.vae, latents)).cpu().numpy()
        return pixels


def val_bank(store: Store, model: ModelRecord) -> RegionBank:
    """Open the regions of the val split, which the model was not trained on."""
    return RegionBank(store, load_region_set(store, model.regions), ("val",), model)


def compose(bank: RegionBank, model: ModelRecord, images: int) -> list[Composition]:
    """Choose maps and crops for a number of images, spread over all regions of a bank."""
    request = counterparts("speed", model.ref, "val", images)
    composer = Composer(request, model, bank, bank)
    numbers = np.linspace(0, len(bank) - 1, images).astype(int).tolist()
    return [composer.compose(index, number) for index, number in enumerate(numbers)]


def batched(made: list[Composition]) -> list[Batch]:
    """Group compositions into batches of at most `BATCH` images."""
    return [
        Batch(
            np.stack([each.labels for each in part]),
            [each.crops for each in part],
            [each.provenance.seed for each in part],
        )
        for part in (made[start : start + BATCH] for start in range(0, len(made), BATCH))
    ]


def rate(make: Make, batches: list[Batch], at_a_time: int = 1) -> float:
    """Return the images per second of `make`, with `at_a_time` concurrent calls."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_a_time) as pool:
        count = sum(len(images) for images in pool.map(make, batches))
    return count / (time.perf_counter() - began)


def taking_turns(rounds: int, **ways: Callable[[], float]) -> dict[str, float]:
    """Measure several ways in turn, and return the median of each; the first turn is a warm-up.

    Args:
        rounds: number of turns that count.
        ways: name → measurement.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, measure in ways.items():
            found = measure()
            if number:
                rates[name].append(found)
    return {name: statistics.median(found) for name, found in rates.items()}
