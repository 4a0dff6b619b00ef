"""The supervisor of the local stack: it starts, restarts and stops the stack's processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

import psutil
from pydantic import SecretStr

from heterotissue.stack.servers import (
    BUCKET,
    Launch,
    free_port,
    gateway_answers,
    plan_redis,
    plan_s3,
    redis_answers,
    s3_answers,
)
from services.gateway.api.session import Sessions
from services.gateway.api.tokens import Tokens
from services.gateway.signing import SignedRecords
from shared.computing import SPIN
from shared.contracts.requests import REQUESTS
from shared.errors import HeteroTissueError, InputError
from shared.queue.worker import make_app
from shared.settings import Settings
from shared.storage import open_store
from shared.whole_files import write_whole

STATE = "stack.json"
"""File in the folder of a stack: name of each process → its number."""

SERVERS = {"redis", "s3", "triton"}
"""Processes that are stopped last, because workers use them until they end."""
START_SECONDS = 120
STOP_SECONDS = 40
MIN_LIFE_SECONDS = 5
"""A process that ends within this time of its start is not restarted."""


@dataclass
class Process:
    """A process of the stack, and the command that restarts it."""

    name: str
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    launch: Launch
    started: float


class Stack:
    """The servers and workers of a local stack whose files are in one folder.

    The folder holds the logs, the data of Redis and S3, and `env` (mode 0600) with the
    addresses and keys. Keys are drawn at the first start. `gateway.key` (mode 0600) signs tokens;
    only the gateway gets it.

    Args:
        folder: folder of the stack.
        services: services that get a worker; a service named twice gets two workers.
        say: receives each line of text for the user.
        triton: start a Triton server too.
        gateway: start the gateway too.

    Attributes:
        token: the administrator's token of the gateway if this start made it, else None.
        link: address that opens the pages once, in one browser; None without a gateway.

    Raises:
        InputError: there is no such service.
    """

    def __init__(
        self,
        folder: Path,
        services: list[str],
        say: Callable[[str], None],
        *,
        triton: bool = False,
        gateway: bool = False,
    ) -> None:
        unknown = set(services) - set(REQUESTS)
        if unknown:
            raise InputError(
                f"no such services: {sorted(unknown)}; there are {', '.join(REQUESTS)}"
            )
        self.folder = folder.resolve()
        self.triton = triton
        self.gateway = gateway
        self.token: str | None = None
        self.link: str | None = None
        self.services = services
        self.say = say
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}
        self._lock: IO[str] | None = None  # held while the stack is up

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def config(self) -> Settings:
        """Settings for a process that uses this stack."""
        names = {name.removeprefix("HTD_").lower(): v for name, v in self.environment.items()}
        return Settings.model_validate(names)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://{self.config.gateway_host}:{self.config.gateway_port}"

    def start(self) -> None:
        """Start the servers, the workers and the gateway, and wait until they answer.

        Raises:
            InputError: a stack is up in the folder already.
            HeteroTissueError: a process does not start; the message names its log.
        """
        for name in ("logs", "redis", f"s3/{BUCKET}"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._claim()
        self._start_redis_and_s3()
        if self.triton:
            self._start_triton()
        for number, service in enumerate(self.services):
            earlier = self.services[:number].count(service)
            name = f"{service}-{earlier + 1}" if earlier else service
            self._launch_module(name, f"services.{service}")
        self._launch_module("reconciler", "shared.queue.reconciler")
        self._wait_for_workers()
        if self.gateway:
            self._start_gateway()
        env = self.folder / "env"
        env.touch(mode=0o600)
        env.write_text("".join(f"export {k}={v}\n" for k, v in sorted(self.environment.items())))
        self._write_state()

    def _claim(self) -> None:
        """Take the folder for this process; two servers on the same data would spoil it."""
        lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise InputError(
                f"a stack is up in {self.folder} already (process {owner}): stop it, or give "
                "another --folder"
            ) from None
        if left := _still_running(self.folder):
            lock.close()
            raise InputError(
                f"an earlier stack left {', '.join(left)} running in {self.folder}: stop them by "
                f"kill {' '.join(map(str, left.values()))}"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _start_redis_and_s3(self) -> None:
        keys = self._keys()
        access, secret, password = keys["access"], keys["secret"], keys["redis"]
        redis_port, s3_port = free_port(), free_port()
        self.environment = {
            "HTD_STORE": f"s3://{BUCKET}",
            "HTD_S3_ENDPOINT": f"http://127.0.0.1:{s3_port}",
            "HTD_S3_ACCESS_KEY": access,
            "HTD_S3_SECRET_KEY": secret,
            "HTD_BROKER_URL": f"redis://:{password}@127.0.0.1:{redis_port}/0",
            "HTD_CACHE_DIR": str(self.folder / "cache"),
            "HTD_GATEWAY_PORT": os.environ.get("HTD_GATEWAY_PORT") or str(free_port()),
        }
        self._launch("redis", plan_redis(self.folder / "redis", redis_port, password))
        self._wait("redis", lambda: redis_answers(self.environment["HTD_BROKER_URL"]))
        self.say(f"redis       127.0.0.1:{redis_port}")
        self._launch("s3", plan_s3(self.folder / "s3", s3_port, access, secret))
        self._wait("s3", lambda: s3_answers(self.config))
        self.say(f"s3          http://127.0.0.1:{s3_port}/{BUCKET}")

    def _keys(self) -> dict[str, str]:
        """Read the keys of the folder; draw them at the first start."""
        drawn = {name: secrets.token_hex(20) for name in ("access", "secret", "redis")}
        keys: dict[str, str] = json.loads(_kept(self.folder / "keys.json", json.dumps(drawn)))
        return keys

    @property
    def gateway_config(self) -> Settings:
        """Settings of the gateway: those of this stack, and the key that signs tokens."""
        key = _kept(self.folder / "gateway.key", secrets.token_hex(32))
        return self.config.model_copy(update={"gateway_key": SecretStr(key)})

    def _start_triton(self) -> None:
        from heterotissue.stack.triton import plan_triton
        from shared.serving.client import Server

        ports = (free_port(), free_port(), free_port())
        repository = f"s3://{self.environment['HTD_S3_ENDPOINT']}/{BUCKET}/triton"
        open_store(config=self.config).put("triton/README", b"Triton's model repository\n")
        keys = {
            "AWS_ACCESS_KEY_ID": self.environment["HTD_S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": self.environment["HTD_S3_SECRET_KEY"],
            "AWS_DEFAULT_REGION": self.config.s3_region,
        }
        environment = self.environment | keys
        self._launch("triton", plan_triton(self.folder / "triton", repository, ports, environment))
        server = Server(f"127.0.0.1:{ports[1]}")
        self._wait("triton", server.ready)
        self.environment["HTD_TRITON_URL"] = server.url
        self.say(f"triton      {server.url}, metrics http://127.0.0.1:{ports[2]}/metrics")

    def _start_gateway(self) -> None:
        config = self.gateway_config
        records = SignedRecords.of(open_store(config=config), config)
        tokens = Tokens(records)
        self.token = tokens.create_first()
        link = Sessions(records, tokens).make_link(
            "browser", ("read", "annotate", "generate", "train")
        )
        self.link = f"{self.url}/login?link={link}"
        own = {"HTD_GATEWAY_KEY": config.gateway_key.get_secret_value()}
        self._launch("gateway", Launch([sys.executable, "-m", "services.gateway"], own))
        self._wait("the gateway", lambda: gateway_answers(self.url))
        self.say(f"pages       {self.link}")
        self.say("            (this link works once, within an hour)")
        self.say(f"gateway     {self.url}/v1")
        if self.token is not None:
            self.say(f"token       {self.token}  (shown this once)")

    def _wait_for_workers(self) -> None:
        app = make_app(self.config)

        def healthy() -> bool:
            answers = app.control.ping(timeout=1.0)
            names = sorted(name.split("-")[0] for answer in answers for name in answer)
            return names == sorted(self.services)

        if self.services:
            self._wait("the workers", healthy)
        self.say(f"workers     {', '.join(self.services)}")

    def _launch_module(self, name: str, module: str) -> None:
        self._launch(name, Launch([sys.executable, "-m", module]))

    def _launch(self, name: str, launch: Launch) -> None:
        launch = replace(launch, environment=self.environment | launch.environment)
        log = (self.folder / "logs" / f"{name}.log").open("ab")
        child = subprocess.Popen(  # noqa: S603 - our own command lines
            launch.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL if launch.stdin is None else subprocess.PIPE,
            env=SPIN | os.environ | launch.environment,
            start_new_session=True,
        )
        if launch.stdin is not None and child.stdin is not None:
            child.stdin.write(launch.stdin)
            child.stdin.close()
        self.processes.append(Process(name, child, log, launch, time.monotonic()))

    def _wait(self, name: str, healthy: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not healthy():
            self.check()
            if time.monotonic() > deadline:
                raise HeteroTissueError(
                    f"{name} did not start in {START_SECONDS} s: see {self.folder / 'logs'}"
                )
            time.sleep(0.1)

    def _write_state(self) -> None:
        state = {process.name: process.child.pid for process in self.processes}
        # `htd stack status` never reads half of it
        write_whole(self.folder / STATE, json.dumps(state, indent=1).encode())

    def check(self) -> None:
        """Raise `HeteroTissueError` if a process has ended."""
        for process in self.processes:
            code = process.child.poll()
            if code is not None:
                raise HeteroTissueError(
                    f"{process.name} ended with {code}: see {self.folder}/logs/{process.name}.log"
                )

    def revive(self) -> None:
        """Restart the processes that have ended.

        Raises:
            HeteroTissueError: a process ended within `MIN_LIFE_SECONDS` of its start.
        """
        for process in list(self.processes):
            code = process.child.poll()
            if code is None:
                continue
            if time.monotonic() - process.started < MIN_LIFE_SECONDS:
                self.check()
            self.say(f"{process.name} ended with {code}; restarting it")
            process.log.close()
            self.processes.remove(process)
            self._launch(process.name, process.launch)
            self._write_state()

    def stop(self) -> None:
        """Stop all processes, workers before servers; interrupted jobs continue at the next start.

        A process that does not end within `STOP_SECONDS` is killed.
        """
        workers = [p for p in self.processes if p.name not in SERVERS]
        servers = [p for p in self.processes if p.name in SERVERS]
        for group in (workers, servers):
            for process in group:
                _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for process in group:
                try:
                    process.child.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _signal(process, signal.SIGKILL)
                    process.child.wait()
                process.log.close()
        self.processes = []
        if self._lock is not None:  # another stack's state stays
            (self.folder / STATE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _kept(path: Path, drawn: str) -> str:
    """Return the secret in a file that only this user may read; `drawn`, if there is none yet."""
    if not path.is_file():
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(drawn)
        new.replace(path)
    return path.read_text()


def _signal(process: Process, number: signal.Signals) -> None:
    if process.child.poll() is None:
        if number == signal.SIGKILL:
            os.killpg(process.child.pid, number)
        else:
            process.child.send_signal(number)


def stack_status(folder: Path) -> dict[str, bool]:
    """Return whether each process of a folder's stack runs, by name; empty if no stack is up."""
    return {name: name in _still_running(folder) for name in _numbers(folder)}


def _numbers(folder: Path) -> dict[str, int]:
    """Read the number of each process of a folder's stack, by name; empty if no stack is up."""
    path = folder / STATE
    numbers: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
    return numbers


def _still_running(folder: Path) -> dict[str, int]:
    """Return the numbers of the processes of a folder's stack that run, by name."""
    numbers = _numbers(folder)
    written = (folder / STATE).stat().st_mtime if numbers else 0.0
    return {name: pid for name, pid in numbers.items() if _running(pid, written)}


def _running(pid: int, written: float) -> bool:
    """Say whether the process with this number runs that ran when its number was written."""
    try:
        return psutil.Process(pid).create_time() <= written + 1
    except psutil.NoSuchProcess:
        return False
