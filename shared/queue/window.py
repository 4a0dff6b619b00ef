"""The units that are queued or running: a few for each worker, however many wait.

The queue of a stage stays short, so a new job is not behind the millions of units of an earlier
one. Whoever ends a unit fills the queue once it is half empty: tenants take turns, and the jobs of
a tenant do (`Turns`), so each tenant gets the same share, whether it has one job or fifty. A job
that has nothing queued, because it is new or a phase has ended, takes its turn early, and goes on
as soon as a worker is free. The reconciler fills the queue too. All of this may be lost: what waits
follows from the store.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from redis import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

from shared.jobs import Ledger, stage_of
from shared.queue.redis_state import RedisLeases, first_queue, queue_length, running_key
from shared.queue.tenants import tenant_of
from shared.queue.turns import LIFETIME_SECONDS, Turns
from shared.storage import is_fault

PER_WORKER = 4
LEAST = 8
"""Units that wait in the queue of a stage: four for each busy worker, at least `LEAST`."""

Send = Callable[[str, str, str], object]
"""Queues a message: queue, job, unit."""

Ledgers = Callable[[str], Ledger]
"""Returns the ledger of a tenant."""

log = logging.getLogger(__name__)


class Window:
    """Keeps a few units of each stage in its queue.

    Attributes:
        left_out: jobs that met an error when they had their turn; each is logged once.

    Args:
        redis: holds the queues, and which units are in flight.
        leases: leases of running units.
        send: queues a unit.
    """

    def __init__(self, redis: Redis, leases: RedisLeases, send: Send) -> None:
        self.redis, self.leases, self._send = redis, leases, send
        self.turns = Turns(redis)
        self.left_out: set[str] = set()

    def size(self, stage: str) -> int:
        """Return the number of units that the queue of a stage is filled up to."""
        busy: Any = self.redis.zcard(running_key(stage))
        return max(LEAST, PER_WORKER * int(busy))

    def send(self, job: str, units: Iterable[str], *, first: bool = False) -> int:
        """Queue units unless they are in flight, and return how many.

        Args:
            job: their job.
            units: the units.
            first: they go before those that wait.
        """
        key, stage, sent = _key(job), stage_of(job), 0
        for unit in units:
            if not self.redis.zadd(key, {unit: time.time() + self.leases.seconds}, nx=True):
                continue
            if self.leases.alive(f"{job}/{unit}"):
                continue  # it runs, and Redis has lost that it is in flight
            # Only if others wait: KEDA wakes up the first worker by the length of the other queue.
            before = first and self.redis.llen(stage)
            self._send(first_queue(stage) if before else stage, job, unit)
            sent += 1
        if sent:
            self.redis.expire(key, LIFETIME_SECONDS)
        return sent

    def start(self, ledger: Ledger, job: str) -> None:
        """Queue the first units of a job that was just submitted: one, or all if nobody waits."""
        self.forget(job)
        idle = queue_length(self.redis, stage_of(job)) == 0
        self.turns.enter(job)
        self._go_early(ledger, job)
        if idle:
            self.send(job, islice(self._waiting(ledger, job), self.size(stage_of(job)) - 1))

    def ended(self, ledgers: Ledgers, job: str, unit: str, again: list[str]) -> None:
        """Take a unit that has ended out of the window; queue some again, and what follows."""
        if self.leases.alive(f"{job}/{unit}"):
            return  # another worker runs it
        self.redis.zrem(_key(job), unit)
        self.send(job, again)
        if self.turns.enter(job):  # nothing waited, but a phase may have ended
            self._go_early(ledgers(tenant_of(job)), job)
        self.fill(stage_of(job), ledgers)

    def fill(self, stage: str, ledgers: Ledgers) -> int:
        """Fill the queue of a stage if it is half empty, a unit at a turn; return how many.

        A job that meets an error is left out, the others go on.

        Raises:
            RedisError: the queue cannot be reached.
            Exception: a fault of the world (`is_fault`), which all jobs meet.
        """
        size = self.size(stage)
        room, sent = size - queue_length(self.redis, stage), 0
        if room < size // 2:
            return 0
        waiting: dict[str, Iterator[str]] = {}
        while sent < room and (job := self.turns.next(stage)) is not None:
            try:
                if job not in waiting:
                    waiting[job] = self._waiting(ledgers(tenant_of(job)), job)
                unit, waiting[job] = self._next(job, waiting[job])
            except Exception as error:
                if isinstance(error, RedisError) or is_fault(error):
                    raise
                self.leave_out(job)
            else:
                sent += self.send(job, unit)
        return sent

    def leave_out(self, job: str) -> None:
        """Pass over a job that has met an error, which is logged, until it enters again."""
        if job not in self.left_out:
            log.exception("job %s is left out, the others go on", job)
        self.left_out.add(job)
        self.turns.leave(job)

    def forget(self, job: str) -> None:
        """Forget which units of a job are in flight, and its turns."""
        self.redis.delete(_key(job))
        self.turns.leave(job)

    def _go_early(self, ledger: Ledger, job: str) -> None:
        """Queue the next unit of a job that has none in flight, if it may take its turn early."""
        if self.redis.zcard(_key(job)) or not self.turns.may_go_early(job):
            return
        if self.send(job, self._next(job, self._waiting(ledger, job))[0], first=True):
            self.turns.go_early(job)

    def _next(self, job: str, waiting: Iterator[str]) -> tuple[list[str], Iterator[str]]:
        """Return the next unit of a job, if there is one, and those after it, if any."""
        units = list(islice(waiting, 2))
        if len(units) < 2:
            self.turns.leave(job)
        return units[:1], chain(units[1:], waiting)

    def _waiting(self, ledger: Ledger, job: str) -> Iterator[str]:
        """Yield the units of a job that wait and are not in flight."""
        flight: Any = self.redis.zrange(_key(job), 0, -1)  # before the store is asked what is done
        known = set(flight)
        return (unit for unit in ledger.waiting(job) if unit not in known)

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
