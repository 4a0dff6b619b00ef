"""The real Triton server with a deployed model: rates, latency, memory, and a sudden end."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import Batch
from benchmarks.gpu_day.networks import DEVICE, noise_batch, percentiles
from heterotissue.stack.servers import free_port
from heterotissue.stack.triton import plan_triton
from services.deploy.stage import DeployStage
from shared.contracts.deploy import DeployRequest, Engine, served_model
from shared.contracts.models import ModelRecord
from shared.contracts.tenants import LOCAL
from shared.errors import HeteroTissueError, JobError
from shared.jobs import Ledger, run_job
from shared.serving.client import Server, TritonGenerator
from shared.serving.priority import Priority
from shared.settings import Settings, settings
from shared.storage import DirectoryStore


class Triton:
    """A Triton server on this machine, whose model repository is in a store's folder."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder / "store")
        repository = folder / "store" / "triton"
        repository.mkdir(parents=True, exist_ok=True)
        ports = (free_port(), free_port(), free_port())
        self.url = f"127.0.0.1:{ports[1]}"
        self._launch = plan_triton(folder, str(repository), ports, {})
        self._log = folder / "triton.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._launch.command, env=os.environ | self._launch.environment, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        Server(self.url).wait(120)

    def kill(self) -> None:
        """Kill the server and its children at once."""
        if self._child is not None:
            os.killpg(self._child.pid, 9)
            self._child.wait()
            self._child = None

    def deploy(self, model: str, number: int, engine: Engine) -> None:
        """Deploy version 1 of a model of the store. Raises `JobError` if that fails."""
        os.environ["HTD_TRITON_URL"] = self.url
        settings.cache_clear()
        ledger = Ledger(self.store)
        job = ledger.submit(DeployRequest(model=model, number=number, engine=engine))
        status = run_job(ledger, DeployStage(), job, config=Settings())
        del os.environ["HTD_TRITON_URL"]
        settings.cache_clear()
        if status.state != "done":
            raise JobError(f"deployment {number} ended {status.state}: {status.failed}")


@contextmanager
def triton(folder: Path) -> Iterator[Triton]:
    """Run a Triton server in a context."""
    server = Triton(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Asking:
    """Requests to a deployment of a model."""

    def __init__(self, server: Triton, record: ModelRecord, number: int) -> None:
        name = served_model(LOCAL, record.model)
        self.record = record
        self.bulk = TritonGenerator(server.url, name, number)
        self.urgent = TritonGenerator(
            server.url, name, number, priority=Priority.INTERACTIVE, alone=False
        )

    def make(self, batch: Batch, urgent: bool = False) -> Any:
        """Request the images of a batch."""
        generator = self.urgent if urgent else self.bulk
        return generator.generate(
            batch.labels, batch.crops, batch.seeds, self.record.recipe.sampling
        )

    def rate(self, images: int, clients: int, least: float) -> float:
        """Return images per second of `clients` at a time, with `images` per request."""
        batch = noise_batch(self.record.recipe, images)
        self.make(batch)
        ends = time.monotonic() + least

        def ask(_: int) -> int:
            count = 0
            while time.monotonic() < ends:
                count += len(self.make(batch))
            return count

        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            made = sum(pool.map(ask, range(clients)))
        return round(made / (time.monotonic() - began), 2)

    def latency(self, requests: int, images: int) -> dict[str, Any]:
        """Measure single images on an idle server, and beside batches of `images`."""
        one = noise_batch(self.record.recipe, 1)
        many = noise_batch(self.record.recipe, images)
        self.make(one, urgent=True)

        def times() -> list[float]:
            taken = []
            for _ in range(requests):
                began = time.monotonic()
                self.make(one, urgent=True)
                taken.append(time.monotonic() - began)
            return taken

        idle, stop = times(), threading.Event()

        def load() -> None:
            while not stop.is_set():
                self.make(many)

        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(load) for _ in range(2)]
            busy = times()
            stop.set()
        for task in tasks:
            task.result()
        return {"idle": percentiles(idle), "loaded": percentiles(busy)}

    def digest(self, images: int) -> str:
        """Return the SHA-256 of the images of one request."""
        return hashlib.sha256(self.make(noise_batch(self.record.recipe, images))).hexdigest()


def measure(
    server: Triton, record: ModelRecord, engine: Engine, number: int, least: float
) -> dict[str, Any]:
    """Deploy a model, and measure it.

    Args:
        server: the server.
        record: the model, in the server's store.
        engine: engine of the networks.
        number: number of the deployment.
        least: seconds of each measurement.
    """
    began = time.monotonic()
    server.deploy(record.model, number, engine)
    asking = Asking(server, record, number)
    found: dict[str, Any] = {"deploy_seconds": round(time.monotonic() - began, 1)}
    found["images_per_second"] = {
        f"{clients} x {images}": asking.rate(images, clients, least)
        for clients, images in ((1, 16), (3, 16), (8, 16), (1, 64), (3, 64))
    }
    found["latency"] = asking.latency(20 if DEVICE == "cuda" else 3, 16)
    found["same_bytes"] = asking.digest(16) == asking.digest(16)
    if DEVICE == "cuda":
        free, whole = torch.cuda.mem_get_info()
        found["gpu_memory_used"] = whole - free
    return found


def killed_under_load(server: Triton, record: ModelRecord, number: int) -> dict[str, Any]:
    """Kill the server while it makes images, start it again, and compare the images.

    Returns:
        Whether the lost request failed with an error of ours, seconds until images came again,
        and whether they are the same.
    """
    asking = Asking(server, record, number)
    before, errors = asking.digest(8), []
    started = threading.Event()

    def ask() -> None:
        for _ in itertools.count():
            started.set()
            try:
                asking.make(noise_batch(record.recipe, 8))
            except HeteroTissueError as error:
                errors.append(str(error))
                return

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(ask)
        started.wait()
        server.kill()
        lost.result()
    began = time.monotonic()
    server.start()
    Server(server.url).load(served_model(LOCAL, record.model), number, record.size)
    same = asking.digest(8) == before
    return {
        "error": errors[0],
        "back_after_seconds": round(time.monotonic() - began, 1),
        "same_bytes": same,
    }
