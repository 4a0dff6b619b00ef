"""How long should a waiting thread spin?  python benchmarks/spinning.py [--out FILE]

Measures the steps per second of the denoiser of recipe `cpu-small` (untrained, 16 rows) for several
values of GNU OpenMP's GOMP_SPINCOUNT: in one process, and in two processes on the same cores. The
variants run in turn; the results are medians of 3 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from shared.computing import SPIN

ROWS = 16
SECONDS = 10.0
ROUNDS = 3
UNTOLD = "as it comes"
COUNTS = (UNTOLD, "0", "1000", SPIN["GOMP_SPINCOUNT"], "30000")


def work(seconds: float) -> float:
    """Run denoiser steps in this process for `seconds`, and return the steps per second."""
    import torch

    from heterotissue.estimate import bands
    from heterotissue.recipes import load_recipe
    from shared.contracts.base import Classes
    from shared.diffusion.autoencoder import encode_latents, make_vae, vae_factor
    from shared.diffusion.conditionings import make_denoiser
    from shared.diffusion.precision import autocast

    recipe, classes = load_recipe("cpu-small"), Classes.of("other", "gland")
    vae = make_vae(recipe.vae)
    denoiser = make_denoiser(recipe.denoiser, recipe.size, classes, vae).eval()
    crop_side = int(recipe.size * recipe.denoiser.crop_max)
    labels, crops = bands(classes, recipe.size, crop_side, ROWS)
    with torch.inference_mode(), autocast("cpu", recipe.precision):
        encoded = denoiser.encode_branches(
            labels, crops, [(True, True)], lambda images: encode_latents(vae, images)
        )
        side = recipe.size // vae_factor(vae)
        sample = torch.randn(ROWS, int(vae.config.latent_channels), side, side)
        times = torch.full((ROWS,), 0.5)
        for _ in range(3):
            denoiser(sample, times, encoded)
        start, done = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            denoiser(sample, times, encoded)
            done += 1
        return done / (time.perf_counter() - start)


def rate(count: str, processes: int) -> float:
    """Return the steps per second of all processes together.

    Args:
        count: value of GOMP_SPINCOUNT, or `UNTOLD` for the default of GNU OpenMP.
        processes: number of processes that run at the same time.
    """
    environment = {name: value for name, value in os.environ.items() if name not in SPIN}
    if count != UNTOLD:
        environment |= SPIN | {"GOMP_SPINCOUNT": count}
    command = [sys.executable, __file__, "--work"]
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return sum(float(child.communicate()[0]) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(work(SECONDS))
        return
    found: dict[str, dict[str, list[float]]] = {count: {"one": [], "two": []} for count in COUNTS}
    for _ in range(ROUNDS):
        for count, rates in found.items():
            rates["one"].append(rate(count, 1))
            rates["two"].append(rate(count, 2))
    medians = {
        count: {name: round(statistics.median(each), 2) for name, each in rates.items()}
        for count, rates in found.items()
    }
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "steps_per_second": medians,
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
