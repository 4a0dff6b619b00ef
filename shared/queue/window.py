"""The units of a job that are queued or running: a few for each worker, however many wait.

The queue of a stage stays short, so a new job is not behind the millions of units of an earlier
one. A worker that ends a unit queues more once half of them are gone, in turn with those of other
jobs; the reconciler does so too. All of this may be lost: what waits follows from the store.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from redis import Redis
from redis.client import NEVER_DECODE

from shared.jobs import Ledger, stage_of
from shared.queue.redis_state import RedisLeases, first_queue, running_key

PER_WORKER = 4
LEAST = 16
"""Units of a job in flight: four for each busy worker of the stage, at least `LEAST`."""

LIFETIME_SECONDS = 7 * 86400

Send = Callable[[str, str, str], object]
"""Queues a message: queue, job, unit."""


class Window:
    """Keeps a few units of each job in flight.

    Args:
        redis: holds the queues, and which units are in flight.
        leases: leases of running units.
        send: queues a unit.
    """

    def __init__(self, redis: Redis, leases: RedisLeases, send: Send) -> None:
        self.redis, self.leases, self._send = redis, leases, send

    def size(self, stage: str) -> int:
        """Return the largest number of units of a job in flight."""
        busy: Any = self.redis.zcard(running_key(stage))
        return max(LEAST, PER_WORKER * int(busy))

    def send(self, job: str, units: Iterable[str]) -> int:
        """Queue units unless they are in flight, and return how many.

        The first unit of a job that has none in flight goes before those of other jobs, so a job
        begins, and goes on to its next phase, as soon as a worker is free.
        """
        key, stage, sent = _key(job), stage_of(job), 0
        for unit in units:
            if not self.redis.zadd(key, {unit: time.time() + self.leases.seconds}, nx=True):
                continue
            if self.leases.alive(f"{job}/{unit}"):
                continue  # it runs, and Redis has lost that it is in flight
            alone = self.redis.zcard(key) == 1
            # Only if others wait: KEDA wakes up the first worker by the length of the other queue.
            before = alone and self.redis.llen(stage)
            self._send(first_queue(stage) if before else stage, job, unit)
            sent += 1
        if sent:
            self.redis.expire(key, LIFETIME_SECONDS)
        return sent

    def top_up(self, ledger: Ledger, job: str) -> int:
        """Queue units that wait if at most half of the window is in flight; return how many."""
        size, key = self.size(stage_of(job)), _key(job)
        count: Any = self.redis.zcard(key)
        if count > size // 2:
            return 0
        flight: Any = self.redis.zrange(key, 0, -1)  # before the store is asked what is done
        waiting = (unit for unit in ledger.waiting(job) if unit not in set(flight))
        return self.send(job, islice(waiting, size - len(flight)))

    def ended(self, ledger: Ledger, job: str, unit: str, again: list[str]) -> None:
        """Take a unit that has ended out of the window; queue some again, and what follows."""
        if self.leases.alive(f"{job}/{unit}"):
            return  # another worker runs it
        self.redis.zrem(_key(job), unit)
        self.send(job, again)
        self.top_up(ledger, job)

    def forget(self, job: str) -> None:
        """Forget which units of a job are in flight."""
        self.redis.delete(_key(job))

    def drop_lost(self, job: str, waiting: Waiting) -> None:
        """Forget units that are in no queue and that nobody runs.

        The score of a unit in flight is the time from which it is lost unless it is seen: one that
        was last seen in a queue may be on its way to its lease, and has a lease's time for that.
        """
        key, now = _key(job), time.time()
        flight: Any = self.redis.zrange(key, 0, -1, withscores=True)
        queued = waiting.of(stage_of(job)) if flight else set()
        for unit, lost in flight:
            if (job, unit) in queued:
                self.redis.zadd(key, {unit: now + self.leases.seconds}, xx=True)
            elif self.leases.alive(f"{job}/{unit}"):
                self.redis.zadd(key, {unit: now}, xx=True)
            elif lost < now:
                self.redis.zrem(key, unit)


class Waiting:
    """The units that wait in the queues, read once per queue."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._units: dict[str, set[tuple[str, str]]] = {}

    def of(self, stage: str) -> set[tuple[str, str]]:
        """Return the (job, unit) pairs that wait for workers of a stage. Raises `RedisError`."""
        if stage not in self._units:
            messages = [*self._messages(first_queue(stage)), *self._messages(stage)]
            self._units[stage] = {unit for each in messages if (unit := unit_of(each))}
        return self._units[stage]

    def _messages(self, queue: str) -> list[bytes]:
        # As bytes, because a message from elsewhere need not be text.
        found: list[bytes] = self.redis.execute_command(  # type: ignore[no-untyped-call]
            "LRANGE", queue, 0, -1, **{NEVER_DECODE: True}
        )
        return found


def _key(job: str) -> str:
    return f"flight:{job}"


def unit_of(message: bytes) -> tuple[str, str] | None:
    """Return the (job, unit) of a message in the form of kombu; None: it is something else."""
    try:
        (job, unit), _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    except (ValueError, KeyError, TypeError):
        return None
    return str(job), str(unit)
