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

from pydantic import Field, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from shared.contracts.base import Contract
from shared.errors import InputError
from shared.jobs import Reporter, stage_of
from shared.queue.counts import count_images, count_unit

PROGRESS_SECONDS = 3600


def running_key(stage: str) -> str:
    """Return the key of the sorted set of a stage's running units, by the end of their leases.

    KEDA counts its members, so that it removes no busy worker.
    """
    return f"running.{stage}"


def first_queue(stage: str) -> str:
    """Return the name of the queue that the workers of a stage look at first."""
    return f"{stage}.first"


def queue_length(redis: Redis, stage: str) -> int:
    """Return the number of units that wait for the workers of a stage. Raises `RedisError`."""
    lengths: Any = [redis.llen(name) for name in (first_queue(stage), stage)]
    return sum(lengths)


# A lease that is gone, because Redis has lost its data, is taken again: the unit still runs.
_RENEW = (
    "local holder=redis.call('get',KEYS[1]) "
    "if not holder or holder==ARGV[1] then redis.call('set',KEYS[1],ARGV[1],'px',ARGV[2]) end"
)
_RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end"


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
        self.seconds = seconds
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
            with suppress(RedisError):  # one that never ends was not set here
                if self.redis.pttl(key) == -1:
                    self.redis.pexpire(key, self.milliseconds)
            yield False
            return
        self._count(name)
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
                self.redis.zrem(running_key(_stage(name)), name)

    def _renew(self, name: str, token: str, stop: threading.Event) -> None:
        while not stop.wait(self.milliseconds / 3000):
            with suppress(RedisError):  # the next round tries again
                self.redis.eval(_RENEW, 1, f"lease:{name}", token, str(self.milliseconds))
            self._count(name)

    def _count(self, name: str) -> None:
        """Count a unit among the running ones until its lease would end."""
        with suppress(RedisError):
            ends = time.time() + self.milliseconds / 1000
            self.redis.zadd(running_key(_stage(name)), {name: ends})

    def alive(self, name: str) -> bool:
        return bool(self.redis.exists(f"lease:{name}"))


def _stage(name: str) -> str:
    """Return the stage of a lease's name, `<job>/<unit>`."""
    return stage_of(name.partition("/")[0])


class Progress(Contract):
    """The progress of a unit."""

    done: int = Field(description="how much of it is done")
    total: int
    note: str = Field(description="what is counted")


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
            self.redis.hdel(f"progress:{job}", unit)
            count_unit(self.redis, job, "done", seconds)
            count_images(self.redis, job, int(result.get("images", 0)))

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        with suppress(RedisError):
            count_unit(self.redis, job, "parked" if parked else "failed", 0.0)


def read_progress(redis: Redis, job: str) -> dict[str, Progress]:
    """Return the progress of a job's units, by unit; what cannot be read is left out."""
    reports: Any = redis.hgetall(f"progress:{job}")
    found: dict[str, Progress] = {}
    for unit, value in reports.items():
        with suppress(ValidationError):  # progress is for display only
            found[unit] = Progress.model_validate_json(value)
    return found
