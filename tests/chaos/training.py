"""A training that is killed at random: `python -m tests.chaos.training --kills 10 --seed 0`.

A process that trains a toy model on the CPU is killed (kill -9) at random moments and started
again. Afterwards every object of the run, the loss curve among them, must have the bytes of a run
that nobody has disturbed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from services.train.stage import TrainStage
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.contracts.train import TrainRequest
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore, sha256
from tests.region_sets import make_region_set

STEPS = 60
RECIPE = Recipe(
    name="toy", size=32, segment_steps=10, sample_every=STEPS,
    vae=VaeRecipe(channels=(8, 16), latent_channels=4, steps=STEPS, batch_size=2, crop=32),
    denoiser=DenoiserRecipe(
        channels=(32, 64), attention=(False, True), condition_channels=32, steps=STEPS,
        batch_size=2, views=8,
    ),
)  # fmt: skip
CONFIG = Settings(threads=1, device="cpu", max_starts=10_000)


def train(folder: Path) -> str:
    """Train, or go on where an earlier process was killed; return the state of the job."""
    ledger = Ledger(DirectoryStore(folder))
    request = TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m")
    return run_job(ledger, TrainStage(), ledger.submit(request), config=CONFIG).state


def kill_at_random(folder: Path, kills: int, seed: int, longest: float) -> int:
    """Train in processes that are killed within `longest` seconds; return the number of kills."""
    chances = random.Random(seed)  # noqa: S311 - faults, no secret
    command = [sys.executable, "-m", "tests.chaos.training", "--train", str(folder)]
    done = 0
    while True:
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # its imports are over
        if done == kills:
            if child.wait():
                raise RuntimeError("the training failed")
            return done
        time.sleep(chances.uniform(0, longest))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            done += 1
        if child.wait() == 0:
            return done


def made(folder: Path) -> dict[str, str]:
    """Return key → SHA-256 of what the run has made."""
    store = DirectoryStore(folder)
    prefixes = ("training/", "models/")
    return {key: sha256(store.get(key)) for prefix in prefixes for key in store.list(prefix)}


def main() -> int:
    """Kill and compare; print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help="be the process that is killed")
    options = parser.parse_args()
    if options.train:
        print("ready", flush=True)
        return 0 if train(options.train) == "done" else 1
    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root, "whole"), Path(root, "killed")
        for folder in (whole, killed):
            make_region_set(DirectoryStore(folder))
        began = time.monotonic()
        train(whole)
        kills = kill_at_random(killed, options.kills, options.seed, (time.monotonic() - began) / 4)
        wanted, found = made(whole), made(killed)
    other = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
    print(json.dumps({"kills": kills, "objects": len(wanted), "other_bytes": other}, indent=1))
    return 0 if wanted and not other else 1


if __name__ == "__main__":
    sys.exit(main())
