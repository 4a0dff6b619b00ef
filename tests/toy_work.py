"""A process that works on toy jobs without a queue."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from shared.jobs import Ledger, work
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.toy import ToyStage

QUICK = Settings(max_failures=3, max_starts=5, lease_seconds=2)


def work_quickly(folder: Path, barrier: Barrier | None = None) -> None:
    """Work on the jobs of a store until there are none, once all processes are there."""
    if barrier is not None:
        barrier.wait()
    work(Ledger(DirectoryStore(folder)), ToyStage(), QUICK, poll_seconds=0.05)
