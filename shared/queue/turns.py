"""Whose unit of a stage is queued next: tenants take turns, and the jobs of a tenant do.

All of this lies in Redis and may be lost; the reconciler enters the open jobs again.
"""

from __future__ import annotations

from typing import Any

from redis import Redis

from shared.jobs import stage_of
from shared.queue.redis_state import first_queue
from shared.queue.tenants import tenant_of

AHEAD = 4
"""Turns that a tenant, and a job, may take early; they miss as many later."""

LIFETIME_SECONDS = 7 * 86400


class Turns:
    """The jobs of each stage that may have units to queue, in turn."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def enter(self, job: str) -> bool:
        """Let a job take its turns, after those who wait already; say whether it took none."""
        self._enter(_tenants(stage_of(job)), tenant_of(job))
        return self._enter(_jobs(stage_of(job), tenant_of(job)), job)

    def leave(self, job: str) -> None:
        """Let a job take no more turns, as it has nothing to queue."""
        key = _jobs(stage_of(job), tenant_of(job))
        self.redis.zrem(key, job)
        self.redis.hdel(_early(key), job)

    def next(self, stage: str) -> str | None:
        """Return the job whose turn it is; None: no job takes turns. Raises `RedisError`."""
        key = _tenants(stage)
        while (tenant := self._rotate(key)) is not None:
            if (job := self._rotate(_jobs(stage, tenant))) is not None:
                return job
            self.redis.zrem(key, tenant)
        return None

    def may_go_early(self, job: str) -> bool:
        """Say whether a job may take a turn before it comes: while few of those wait already."""
        stage = stage_of(job)
        if self.redis.zcard(_tenants(stage)) < 2 and self.redis.llen(first_queue(stage)) >= AHEAD:
            return False
        return all(self._ahead(key, name) < AHEAD for key, name in self._rounds(job))

    def go_early(self, job: str) -> None:
        """Count a turn that a job, and so its tenant, has taken before it came."""
        for key, name in self._rounds(job):
            self.redis.hincrby(_early(key), name, 1)
            self.redis.expire(_early(key), LIFETIME_SECONDS)

    def _rounds(self, job: str) -> list[tuple[str, str]]:
        """Return the rounds in which a job, and its tenant, take turns with others."""
        stage, tenant = stage_of(job), tenant_of(job)
        rounds = [(_tenants(stage), tenant), (_jobs(stage, tenant), job)]
        return [each for each in rounds if self.redis.zcard(each[0]) > 1]

    def _enter(self, key: str, name: str) -> bool:
        entered = self.redis.zadd(key, {name: self._number(key)}, nx=True)
        self.redis.expire(key, LIFETIME_SECONDS)
        return bool(entered)

    def _rotate(self, key: str) -> str | None:
        """Return who has waited longest, and put it last; pass over who had this turn early."""
        while first := self._first(key):
            self.redis.zadd(key, {first: self._number(key)}, xx=True)
            if self._ahead(key, first) <= 0:
                return first
            self.redis.hincrby(_early(key), first, -1)
        return None

    def _first(self, key: str) -> str | None:
        names: Any = self.redis.zrange(key, 0, 0)
        return names[0] if names else None

    def _number(self, key: str) -> int:
        """Return a number above those of all earlier turns."""
        last: Any = self.redis.zrange(key, -1, -1, withscores=True)
        return int(last[0][1]) + 1 if last else 0

    def _ahead(self, key: str, name: str) -> int:
        count: Any = self.redis.hget(_early(key), name)
        return int(count or 0)


def _tenants(stage: str) -> str:
    return f"turns:{stage}"


def _jobs(stage: str, tenant: str) -> str:
    return f"turns:{stage}:{tenant}"


def _early(key: str) -> str:
    return f"early.{key}"
