"""A process of a training in two processes, which is told to end once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.train import distributed
from services.train.loop import Training
from shared.diffusion.denoiser import Denoiser


def train_in_two(
    rank: int, calm: tuple[Path, str], told: tuple[Path, str], ports: Sequence[int]
) -> None:
    """Train a job calmly, then another one, in which the second process is told to end.

    Args:
        rank: 0 or 1.
        calm, told: folder of the store and id of each job.
        ports: three free ports.
    """
    os.environ |= {
        "HTD_THREADS": "1", "HTD_DEVICE": "cpu", "HTD_MAX_FAILURES": "1",
        "MASTER_ADDR": "localhost", "RANK": str(rank), "WORLD_SIZE": "2",
    }  # fmt: skip
    _train(calm, ports[0])
    step = Training.step

    def step_told(self: Training, number: int, *others: object) -> object:
        if rank == 1 and number == 2 and isinstance(self.module, Denoiser):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, *others)  # type: ignore[arg-type]

    Training.step = step_told  # type: ignore[assignment, method-assign]
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        _train(told, ports[1])
    assert (told[0] / "training/r/checkpoints/paused.safetensors").exists()
    Training.step = step  # type: ignore[method-assign]
    _train(told, ports[2])


def _train(job: tuple[Path, str], port: int) -> None:
    os.environ["MASTER_PORT"] = str(port)
    sys.argv = ["distributed", job[1], "--store", str(job[0])]
    distributed.main()
