"""Which solver, and how many steps?  python benchmarks/solver.py STORE MODEL

Samples latents for the val split's maps and crops with several solvers from the same noise,
without guidance. The reference is a solution with 400 steps. Prints the root mean square error of
the latents, whose standard deviation is 1, for several numbers of denoiser evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from heterotissue.study import counterparts
from services.synthesize.compose import Composer
from shared.datasets.region_bank import RegionBank
from shared.diffusion.autoencoder import encode_latents, vae_factor
from shared.diffusion.flow import Velocity, draw_noise, guided, sample_flow
from shared.diffusion.guidance import Guidance
from shared.diffusion.model_store import load_model
from shared.diffusion.precision import autocast
from shared.imaging.region_sets import load_region_set
from shared.models import find_version
from shared.storage import open_store

EVALUATIONS = (4, 6, 10, 20, 40)
REFERENCE = 400


def heun(velocity: Velocity, sample: Tensor, evaluations: int) -> Tensor:
    """Integrate the flow with Heun's second-order method, two evaluations per step.

    Args:
        velocity: velocity of the flow at a sample and a time.
        sample: noise, at time 1.
        evaluations: number of evaluations of the velocity; even.
    """
    steps = evaluations // 2
    for step in range(steps):
        time = 1 - step / steps
        first = velocity(sample, time)
        second = velocity(sample - first / steps, time - 1 / steps)
        sample = sample - (first + second) / (2 * steps)
    return sample


SOLVERS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {
    "Euler": partial(sample_flow, first_order=True),
    "Heun": heun,
    "Adams-Bashforth 2": sample_flow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--images", type=int, default=16)
    given = parser.parse_args()
    store = open_store(given.store)
    sampler = load_model(store, find_version(store, given.model), "cpu")
    model, pipeline = sampler.record, sampler.pipeline
    bank = RegionBank(store, load_region_set(store, model.regions), ("val",), model)
    request = counterparts("solver", model.ref, "val", given.images)
    composer = Composer(request, model, bank, bank)
    numbers = np.linspace(0, len(bank) - 1, given.images).astype(int)
    made = [composer.compose(index, int(number)) for index, number in enumerate(numbers)]
    labels = np.stack([each.labels for each in made])
    side = model.size // vae_factor(pipeline.vae)
    noise = draw_noise(range(given.images), (int(pipeline.vae.config.latent_channels), side, side))
    with torch.inference_mode(), autocast("cpu", model.recipe.precision):
        every = [True] * given.images
        condition = pipeline.denoiser.lay_out(
            labels, [each.crops for each in made], every, every,
            lambda images: encode_latents(pipeline.vae, images),
        )  # fmt: skip
        encoded = pipeline.denoiser.encode_condition(condition)
        velocity = guided(pipeline.denoiser, encoded, Guidance.of(1, 1))
        reference = sample_flow(velocity, noise, REFERENCE)
        print(f"evaluations | {' | '.join(SOLVERS)}")
        for count in EVALUATIONS:
            errors = [
                (solve(velocity, noise, count) - reference).square().mean().sqrt()
                for solve in SOLVERS.values()
            ]
            print(f"{count} | {' | '.join(f'{error:.4f}' for error in errors)}", flush=True)


if __name__ == "__main__":
    main()
