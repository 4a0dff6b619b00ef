"""What goes wrong: processes, Redis, the S3 server and its disk, the network, messages, people."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

from heterotissue.stack.servers import redis_answers, s3_answers
from heterotissue.stack.supervisor import Process, Stack
from shared.contracts.base import Request
from shared.jobs import Ledger, names
from shared.queue.redis_state import connect
from shared.queue.worker import TASK, Dispatcher
from shared.settings import Settings
from tests.chaos.proxy import Mode, Proxy

LEASE_SECONDS = 5


class ChaosStack(Stack):
    """A local stack whose workers reach the S3 server through a proxy.

    Args:
        folder: folder of the stack.
        worker: module of the workers.
        workers: number of workers.
        seed: seed of the proxy's chances.
        gateway, triton: whether it has a gateway, and a Triton server.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        workers: int,
        seed: int,
        *,
        gateway: bool = False,
        triton: bool = False,
    ) -> None:
        super().__init__(folder, [], lambda _: None, gateway=gateway, triton=triton)
        self.worker, self.workers, self.seed = worker, workers, seed

    def start(self) -> None:
        self.disk = _mount(self.folder / "s3")
        super().start()
        for number in range(self.workers):
            self._launch_module(f"worker-{number}", self.worker)

    def _start_redis_and_s3(self) -> None:
        super()._start_redis_and_s3()
        self.direct: Settings = self.config
        self.proxy = Proxy(int(self.direct.s3_endpoint.rsplit(":", 1)[1]), self.seed)
        self.proxy.__enter__()
        self.environment["HTD_S3_ENDPOINT"] = f"http://127.0.0.1:{self.proxy.port}"

    def stop(self) -> None:
        super().stop()
        if "proxy" in vars(self):  # it may have failed to start
            self.proxy.__exit__()
        if self.disk:
            subprocess.run(["umount", self.folder / "s3"], check=False)

    def find(self, name: str) -> Process:
        """Return a process by its name."""
        return next(process for process in self.processes if process.name == name)

    def restart(self, name: str) -> None:
        """Start a process again that has ended or ends now."""
        process = self.find(name)
        process.child.wait(60)
        process.log.close()
        self.processes.remove(process)
        self._launch(name, process.launch)

    def restart_ended(self) -> None:
        """Start every process again that has ended by itself."""
        for process in list(self.processes):
            if process.child.poll() is not None:
                self.restart(process.name)


def _mount(folder: Path) -> bool:
    """Give the S3 server a small disk of its own; say whether this machine allows it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@dataclass
class Chaos:
    """A stack, the jobs on it, and the chances that decide what goes wrong."""

    stack: ChaosStack
    rng: random.Random
    ledgers: dict[str, Ledger]
    jobs: dict[str, tuple[Ledger, Request]] = field(default_factory=dict)

    @property
    def redis(self) -> Redis:
        return connect(self.stack.direct.broker_url.get_secret_value())

    def send(self, stage: str, job: str, units: list[str]) -> None:
        Dispatcher(self.stack.direct).send(stage, job, units)

    def open_jobs(self) -> list[str]:
        """List the jobs that have no result, or whose closing broke off and is not tidied yet."""
        return [job for job, (ledger, _) in self.jobs.items() if ledger.opened(job) is not None]

    def pause(self, low: float, high: float) -> None:
        time.sleep(self.rng.uniform(low, high))

    def worker(self) -> str:
        return f"worker-{self.rng.randrange(self.stack.workers)}"


def _kill(chaos: Chaos, name: str) -> None:
    child = chaos.stack.find(name).child
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    chaos.pause(0, 1)
    chaos.stack.restart(name)


def _terminate(chaos: Chaos, name: str) -> None:
    chaos.stack.find(name).child.terminate()
    chaos.stack.restart(name)


def _freeze(chaos: Chaos, name: str, seconds: float) -> None:
    group = chaos.stack.find(name).child.pid
    os.killpg(group, signal.SIGSTOP)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)


def _kill_child(chaos: Chaos) -> None:
    for child in psutil.Process(chaos.stack.find(chaos.worker()).child.pid).children():
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _redis_back(chaos: Chaos) -> None:
    deadline = time.monotonic() + 30
    url = chaos.stack.direct.broker_url.get_secret_value()
    while not redis_answers(url) and time.monotonic() < deadline:
        time.sleep(0.05)


def _kill_redis(chaos: Chaos, *, wipe: bool) -> None:
    os.killpg(chaos.stack.find("redis").child.pid, signal.SIGKILL)
    chaos.pause(0, 2)
    if wipe:
        shutil.rmtree(chaos.stack.folder / "redis")
        (chaos.stack.folder / "redis").mkdir()
    chaos.stack.restart("redis")
    _redis_back(chaos)


def _fill_redis(chaos: Chaos) -> None:
    chaos.redis.config_set("maxmemory", 1)
    chaos.pause(1, 3)
    chaos.redis.config_set("maxmemory", 0)


def _end_s3(chaos: Chaos, number: signal.Signals, longest: float) -> None:
    os.killpg(chaos.stack.find("s3").child.pid, number)
    chaos.pause(0, longest)
    chaos.stack.restart("s3")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(Exception):
            if s3_answers(chaos.stack.direct):
                return
        time.sleep(0.1)


def _through(chaos: Chaos, mode: Mode, low: float, high: float, share: float = 0.3) -> None:
    chaos.stack.proxy.share = share
    chaos.stack.proxy.mode = mode
    chaos.pause(low, high)
    chaos.stack.proxy.mode = "pass"


def _fill_disk(chaos: Chaos) -> None:
    filler = chaos.stack.folder / "s3" / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    chaos.pause(1, 4)
    filler.unlink()


def _lock_disk(chaos: Chaos) -> None:
    def remount(way: str) -> bool:
        command = ["mount", "-o", f"remount,{way}", str(chaos.stack.folder / "s3")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    for _ in range(50):  # it is busy while a file is being written
        if remount("ro"):
            break
        time.sleep(0.02)
    chaos.pause(1, 4)
    while not remount("rw"):
        time.sleep(0.05)


def _twice(chaos: Chaos) -> None:
    for job in chaos.open_jobs():
        units = chaos.jobs[job][0].runnable(job)[1]
        chaos.send(chaos.jobs[job][1].stage, job, [*units, *units])


def _stale(chaos: Chaos) -> None:
    for job, (ledger, request) in chaos.jobs.items():
        units = ["finish", "plan", "table-0", *sorted(ledger.done(job))[:4]]
        chaos.rng.shuffle(units)
        chaos.send(request.stage, job, units)


def _reorder(chaos: Chaos) -> None:
    redis = chaos.redis
    for stage in {request.stage for _, request in chaos.jobs.values()}:
        messages = redis.execute_command("LRANGE", stage, 0, -1, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
        chaos.rng.shuffle(messages)
        if messages:
            swap = redis.pipeline()
            swap.delete(stage)
            swap.rpush(stage, *messages)
            swap.execute()


def _foreign(chaos: Chaos) -> None:
    dispatcher, redis = Dispatcher(chaos.stack.direct), chaos.redis
    for stage in {request.stage for _, request in chaos.jobs.values()}:
        for job in (f"{stage}-0123456789abcdef", f"acme.{stage}-0123456789abcdef", "nonsense"):
            dispatcher.send(stage, job, ["plan", "shard-000000", "finish"])
        dispatcher.app.send_task(TASK, args=[1, 2, 3], queue=stage)
        dispatcher.app.send_task("no.such.task", args=[], queue=stage)
        for message in (b"\xff\x00", b"{}", b"[]", b"null", pickle.dumps({"a": 1})):
            redis.lpush(stage, message)


def _resubmit(chaos: Chaos, *, cancel: bool) -> None:
    for job in chaos.open_jobs()[:1]:
        ledger, request = chaos.jobs[job]
        if cancel:
            ledger.cancel(job)
            chaos.pause(0, 1)
        ledger.submit(request)
        Dispatcher(chaos.stack.direct).start(ledger, job)


def _remake(chaos: Chaos) -> None:
    """Delete a dataset while workers are at it, as after a loss of Redis, and ask for it anew."""
    chaos.redis.flushall()
    for job in chaos.open_jobs()[:1]:
        ledger, request = chaos.jobs[job]
        ledger.cancel(job)
        ledger.delete(job)
        for product in request.products():
            ledger.store.delete_prefix(f"{product}/")
            names.release(ledger.store, product)
        ledger.submit(request)
        Dispatcher(chaos.stack.direct).start(ledger, job)


FAULTS: dict[str, Callable[[Chaos], object]] = {
    "worker killed": lambda chaos: _kill(chaos, chaos.worker()),
    "pool child killed": _kill_child,
    "worker told to end": lambda chaos: _terminate(chaos, chaos.worker()),
    "worker frozen past its lease": lambda c: _freeze(c, c.worker(), LEASE_SECONDS + 1.5),
    "worker frozen for a moment": lambda chaos: _freeze(chaos, chaos.worker(), 1),
    "reconciler killed": lambda chaos: _kill(chaos, "reconciler"),
    "reconciler frozen": lambda chaos: _freeze(chaos, "reconciler", 2),
    "redis killed": lambda chaos: _kill_redis(chaos, wipe=False),
    "redis killed and its data lost": lambda chaos: _kill_redis(chaos, wipe=True),
    "redis flushed": lambda chaos: chaos.redis.flushall(),
    "redis frozen": lambda chaos: _freeze(chaos, "redis", 2),
    "redis out of memory": _fill_redis,
    "s3 killed": lambda chaos: _end_s3(chaos, signal.SIGKILL, 1),
    "s3 told to end": lambda chaos: _end_s3(chaos, signal.SIGTERM, 1),
    "s3 away": lambda chaos: _end_s3(chaos, signal.SIGTERM, 8),
    "s3 frozen": lambda chaos: _freeze(chaos, "s3", 3),
    "s3 refuses connections": lambda chaos: _through(chaos, "refuse", 1, 6),
    "s3 hangs": lambda chaos: _through(chaos, "hang", 1, 5),
    "s3 slow": lambda chaos: _through(chaos, "slow", 2, 5),
    "s3 cuts connections": lambda chaos: _through(chaos, "reset", 1, 4),
    "s3 answers 503": lambda chaos: _through(chaos, "503", 1, 4, share=1),
    "s3 answers 503 at times": lambda chaos: _through(chaos, "503", 2, 5),
    "s3 answers 507": lambda chaos: _through(chaos, "507", 1, 4),
    "disk full": _fill_disk,
    "disk read-only": _lock_disk,
    "every unit sent twice": _twice,
    "stale messages": _stale,
    "messages reordered": _reorder,
    "foreign messages": _foreign,
    "submitted again": lambda chaos: _resubmit(chaos, cancel=False),
    "cancelled and submitted again": lambda chaos: _resubmit(chaos, cancel=True),
    "deleted and made anew": _remake,
}

KILLS = {
    "worker killed", "pool child killed", "worker told to end", "worker frozen past its lease",
}  # fmt: skip
"""Faults that interrupt a unit; at most the unit in flight may be computed twice."""


def inject(chaos: Chaos, faults: Mapping[str, Callable[[Chaos], object]], name: str) -> None:
    """Let something go wrong, and heal it."""
    with suppress(RedisError):
        faults[name](chaos)
    chaos.stack.restart_ended()
