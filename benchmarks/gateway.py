"""Can the gateway serve many clients and large files?  python benchmarks/gateway.py STORE MODEL

Datasets are made in turn without clients and with clients that follow them; half of the clients
poll the status every few seconds, and half read the stream of events. Then a large file is
uploaded while the gateway's memory is measured. The stack is a real one in a temporary folder;
clients, servers and workers share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from heterotissue.client import Client
from heterotissue.stack.supervisor import Stack
from heterotissue.study import counterparts
from services.gateway.api.tokens import Tokens
from services.gateway.signing import SignedRecords
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.tenants import LOCAL
from shared.models import find_version, read_model
from shared.storage import open_store

PAUSE = 5.0  # seconds between two questions of one client


class Crowd:
    """Clients that follow a dataset inside a `with` block.

    Attributes:
        seconds: response time of each poll of the status.
        events: number of events that were read from streams.
        failures: number of polls and streams that failed.
    """

    def __init__(self, url: str, dataset: str, tokens: list[str]) -> None:
        self.url, self.dataset, self.tokens = url, dataset, tokens
        self.seconds: list[float] = []
        self.events = 0
        self.failures = 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def __enter__(self) -> Crowd:
        self._running = self._pool.submit(asyncio.run, self._all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._running is not None:
            self._running.result()
        self._pool.shutdown()

    async def _all(self) -> None:
        clients = [
            httpx2.AsyncClient(
                base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60
            )
            for token in self.tokens
        ]
        half = len(clients) // 2
        tasks = [
            *(asyncio.create_task(self._ask(client)) for client in clients[:half]),
            *(asyncio.create_task(self._read(client)) for client in clients[half:]),
        ]
        while not self._stop.is_set():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()

    async def _ask(self, client: httpx2.AsyncClient) -> None:
        await asyncio.sleep(PAUSE * np.random.default_rng(id(client)).random())
        while True:
            began = time.perf_counter()
            try:
                answer = await client.get(f"/v1/datasets/{self.dataset}")
                self.failures += not answer.is_success
                self.seconds.append(time.perf_counter() - began)
            except httpx2.TransportError:
                self.failures += 1
            await asyncio.sleep(PAUSE)

    async def _read(self, client: httpx2.AsyncClient) -> None:
        try:
            async with client.stream("GET", f"/v1/datasets/{self.dataset}/events") as answer:
                self.failures += not answer.is_success
                async for line in answer.aiter_lines():
                    self.events += line.startswith("data:")
        except httpx2.TransportError:
            self.failures += 1


def images_per_second(
    client: Client, request: DatasetRequest, crowd: AbstractContextManager[object]
) -> float:
    """Make a dataset while a crowd follows it, and return its images per second."""
    began = time.perf_counter()
    client.submit_dataset(request)
    with crowd:
        while client.dataset(request.dataset).state in {"planning", "running"}:
            time.sleep(0.5)
        took = time.perf_counter() - began
    assert client.dataset(request.dataset).state == "done"
    return request.images / took


def zeros(count: int) -> Iterator[bytes]:
    """Yield `count` zero bytes, one mebibyte at a time; `count` is a multiple of that."""
    block = bytes(1 << 20)
    for _ in range(count >> 20):
        yield block


def upload(url: str, token: str, size: int, process: psutil.Process) -> dict[str, float]:
    """Upload a file of `size` bytes through the gateway while its memory is measured.

    Args:
        url: address of the gateway.
        token: a token of the gateway.
        size: size of the file in bytes.
        process: the gateway's process.

    Returns:
        Bytes, seconds, and the gateway's memory in MB before the upload and at its peak.
    """
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    answer = httpx2.put(
        f"{url}/v1/slides/large/source/large.tiff",
        content=zeros(size),
        headers={"Authorization": f"Bearer {token}", "Content-Length": str(size)},
        timeout=600,
    )
    took = time.perf_counter() - began
    stop.set()
    watcher.join()
    assert answer.is_success, answer.text
    return {"bytes": size, "seconds": took, "idle_mb": before / 1e6, "peak_mb": peak[0] / 1e6}


def gateway_process() -> psutil.Process:
    """Find the gateway among the child processes of this process."""
    for child in psutil.Process().children(recursive=True):
        if "services.gateway" in child.cmdline():
            return child
    raise LookupError("the stack has no gateway")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--upload", type=int, default=2 << 30, help="bytes")
    parser.add_argument("--out", type=Path, default=Path("out/gateway.json"))
    given = parser.parse_args()
    os.environ["HTD_THREADS"] = "1"  # a core for the worker, one for all others
    source = open_store(given.store)
    model = read_model(source, find_version(source, given.model))
    with (
        tempfile.TemporaryDirectory(prefix="htd-load-") as folder,
        Stack(Path(folder), ["synthesize"], print, gateway=True) as stack,
        Client(stack.url, str(stack.token)) as client,
    ):
        store = open_store(config=stack.config)
        for prefix in (model.ref.prefix, f"regions/{model.regions}/"):
            for key in source.list(prefix):
                store.put(key, source.get(key))
        known = Tokens(SignedRecords.of(store, stack.gateway_config))
        tokens = [
            known.create(f"client-{number}", LOCAL, ("read",))[0] for number in range(given.clients)
        ]

        def asked(name: str, images: int) -> DatasetRequest:
            return counterparts(name, model.ref, "val", images)

        images_per_second(client, asked("warm", 32), nullcontext())
        alone, followed, crowds = [], [], []
        for number in range(given.rounds):
            request = asked(f"alone-{number}", given.images)
            alone.append(images_per_second(client, request, nullcontext()))
            request = asked(f"followed-{number}", given.images)
            crowds.append(Crowd(stack.url, request.dataset, tokens))
            followed.append(images_per_second(client, request, crowds[-1]))
        seconds = [value for crowd in crowds for value in crowd.seconds]
        result: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "model": given.model,
            "clients": given.clients,
            "images_per_second": {"alone": alone, "followed": followed},
            "generation_kept": float(np.median(followed) / np.median(alone)),
            "questions": len(seconds),
            "question_seconds": {
                f"p{share}": float(np.percentile(seconds, share)) for share in (50, 95, 99)
            },
            "events": sum(crowd.events for crowd in crowds),
            "failures": sum(crowd.failures for crowd in crowds),
            "upload": upload(stack.url, str(stack.token), given.upload, gateway_process()),
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
