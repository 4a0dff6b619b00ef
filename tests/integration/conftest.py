"""Real servers for the tests: Redis and S3, started once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from heterotissue.stack.supervisor import Stack
from shared.settings import Settings

QUICK = {
    "HTD_LEASE_SECONDS": "2",
    "HTD_RECONCILE_SECONDS": "0.5",
    "HTD_MAX_STARTS": "100",
    "HTD_DEVICE": "cpu",  # or each worker would import torch to look for a GPU
}
"""Short times, so that what was lost is found within seconds."""


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis, S3 and the reconciler, without workers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        with Stack(tmp_path_factory.mktemp("stack"), [], print) as stack:
            yield stack


@pytest.fixture
def config(servers: Stack) -> Settings:
    """Settings of a process that uses the servers."""
    return servers.config


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def toy_worker(servers: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the toy stage, in a process group of its own."""
    log = (servers.folder / "logs" / "toy.log").open("ab")
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.toy"],
        env=os.environ | QUICK | servers.environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        kill(worker)
        log.close()


def kill(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker and its children at once, as a power cut would."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
