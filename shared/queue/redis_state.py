"""Leases and progress, which are kept in Redis beside the queues and may be lost."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from shared.errors import InputError
from shared.jobs import stage_of
from shared.jobs.reporting import Reporter
from shared.queue.counts import count_images, count_unit

PROGRESS_SECONDS = 3600

# A lease that is gone, because Redis has lost its data, is taken again: the unit still runs.
_RENEW = (
    "local holder=redis.call('get',KEYS[1]) "
    "if not holder or holder==ARGV[1] then redis.call('set',KEYS[1],ARGV[1],'px',ARGV[2]) end"
)
_RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end"


def running_key(stage: str) -> str:
    """Return the key of the set of a stage's units that workers are at; KEDA counts it.

    The transport's own index of unfinished messages loses those of long units.
    """
    return f"running.{stage}"


def connect(broker_url: str) -> Redis:
    """Open a connection to the Redis at `broker_url`. Raises `InputError` if it is no address."""
    try:
        client: Redis = Redis.from_url(broker_url, socket_timeout=10, decode_responses=True)
        address = urlsplit(broker_url)
        if address.scheme != "unix" and not (address.path.strip("/") or "0").isdigit():
            raise ValueError(f"the database {address.path!r} is not a number")
    except ValueError as error:  # the address is not shown, because it may hold a password
        raise InputError(
            f"the broker's address is not valid: {error}. Give redis://host:port/0 by --broker or "
            "HTD_BROKER_URL"
        ) from error
    return client


class RedisLeases:
    """Leases as expiring Redis keys with a heartbeat.

    If Redis cannot be reached, every claim succeeds: the work may be done twice, which is
    harmless because its outputs are the same bytes.
    """

    def __init__(self, redis: Redis, seconds: int) -> None:
        self.redis = redis
        self.milliseconds = seconds * 1000

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        key, token = f"lease:{name}", uuid.uuid4().hex
        try:
            mine = bool(self.redis.set(key, token, nx=True, px=self.milliseconds))
        except RedisError:
            yield True
            return
        if not mine:
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._renew, args=(name, token, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            with suppress(RedisError):  # the lease expires by itself
                self.redis.eval(_RELEASE, 1, key, token)
                self.redis.zrem(_running_key_of(name), name)

    def _renew(self, name: str, token: str, stop: threading.Event) -> None:
        while True:
            with suppress(RedisError):  # the next round tries again
                self._say_running(name)
            if stop.wait(self.milliseconds / 3000):
                return
            with suppress(RedisError):
                self.redis.eval(_RENEW, 1, f"lease:{name}", token, str(self.milliseconds))

    def _say_running(self, name: str) -> None:
        """Add a unit to the set of those that run, and remove those of lost workers."""
        key, now = _running_key_of(name), time.time()
        with self.redis.pipeline() as together:
            together.zadd(key, {name: now})
            together.zremrangebyscore(key, 0, now - self.milliseconds / 1000)
            together.pexpire(key, self.milliseconds)
            together.execute()

    def alive(self, name: str) -> bool:
        return bool(self.redis.exists(f"lease:{name}"))


def _running_key_of(name: str) -> str:
    return running_key(stage_of(name.partition("/")[0]))


class RedisReporter(Reporter):
    """Writes progress to a Redis hash per job, and counts units and images."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        value = json.dumps({"done": done, "total": total, "note": note})
        with suppress(RedisError):  # progress is for display only
            self.redis.hset(f"progress:{job}", unit, value)
            self.redis.expire(f"progress:{job}", PROGRESS_SECONDS)

    def done(self, job: str, unit: str, seconds: float, result: dict[str, Any]) -> None:
        with suppress(RedisError):
            count_unit(self.redis, job, "done", seconds)
            count_images(self.redis, job, int(result.get("images", 0)))

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        with suppress(RedisError):
            count_unit(self.redis, job, "parked" if parked else "failed", 0.0)


def read_progress(redis: Redis, job: str) -> dict[str, dict[str, Any]]:
    """Return the progress of a job's units: unit → `done`, `total` and `note`."""
    reports: Any = redis.hgetall(f"progress:{job}")
    return {unit: json.loads(value) for unit, value in reports.items()}
