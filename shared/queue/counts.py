"""Counts of finished units, kept in Redis.

Redis keeps them so that one process can show the counts of all workers, which start, fork
and stop at any time. If Redis is wiped, the counts restart at zero, which Prometheus handles
like the restart of a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from shared.jobs import stage_of

COUNTS, SECONDS, IMAGES = "metrics:units", "metrics:seconds", "metrics:images"


@dataclass(frozen=True)
class UnitCount:
    """Number and total seconds of a stage's units with one outcome: done, failed or parked."""

    stage: str
    outcome: str
    units: int
    seconds: float


def count_unit(redis: Redis, job: str, outcome: str, seconds: float) -> None:
    """Count a unit that has ended. Raises `RedisError`."""
    name = f"{stage_of(job)}|{outcome}"
    redis.hincrby(COUNTS, name, 1)
    redis.hincrbyfloat(SECONDS, name, seconds)


def count_images(redis: Redis, job: str, images: int) -> None:
    """Count images that a unit of `job` has made. Raises `RedisError`."""
    if images:
        redis.hincrby(IMAGES, stage_of(job), images)


def read_images(redis: Redis) -> dict[str, int]:
    """Return the number of images made, by stage. Raises `RedisError`."""
    images: Any = redis.hgetall(IMAGES)
    return {stage: int(count) for stage, count in sorted(images.items())}


def read_counts(redis: Redis) -> list[UnitCount]:
    """Return all counts. Raises `RedisError`."""
    units: Any = redis.hgetall(COUNTS)
    seconds: Any = redis.hgetall(SECONDS)
    counts = []
    for name, count in sorted(units.items()):
        stage, _, outcome = name.partition("|")
        counts.append(UnitCount(stage, outcome, int(count), float(seconds.get(name, 0.0))))
    return counts
