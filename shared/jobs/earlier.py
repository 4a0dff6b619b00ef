"""The units before a unit of a job, as their markers tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from shared.contracts.jobs import Marker
from shared.jobs.made import DamagedOutputError, Outputs
from shared.jobs.markers import markers_of
from shared.jobs.plan import Segment, StoredPlan
from shared.jobs.reader import SHORT, Reader
from shared.jobs.records import UnreadableRecordError
from shared.jobs.snapshot import Snapshot
from shared.jobs.stage import PLAN, Shard
from shared.storage import ObjectNotFoundError


def read_by(
    reader: Reader, job: str, plan: StoredPlan, segment: Segment, shard: Shard
) -> Iterator[Outputs]:
    """Yield what a shard reads: the shards that it comes after, or those of the phase before.

    Raises:
        DamagedOutputError: a marker is damaged.
    """
    for unit in shard.after:
        yield outputs_of(job, unit, _marker(reader, job, plan.find(unit)[0], unit))
    if not shard.after and segment.phase:
        yield from _of_phases(reader, job, plan, range(segment.phase - 1, segment.phase))


def before(reader: Reader, job: str, plan: StoredPlan, phase: int) -> Iterator[Outputs]:
    """Yield the plan, and then all shards of the phases before one.

    Raises:
        DamagedOutputError: a marker is damaged.
    """
    with suppress(ObjectNotFoundError):
        yield outputs_of(job, PLAN, _marker(reader, job, SHORT, PLAN))
    yield from _of_phases(reader, job, plan, range(phase))


def outputs_of(job: str, unit: str, marker: Marker | None) -> Outputs:
    """Return what a unit made. Raises `DamagedOutputError` if its marker is None: damaged."""
    if marker is None:
        raise DamagedOutputError(unit, f"its marker in job {job}")
    return unit, marker.outputs


def _of_phases(reader: Reader, job: str, plan: StoredPlan, phases: range) -> Iterator[Outputs]:
    snapshot = Snapshot(reader.store, job, plan)
    for segment in chain.from_iterable(map(plan.segments, phases)):
        for unit, marker in markers_of(snapshot, segment).items():
            yield outputs_of(job, unit, marker)


def _marker(reader: Reader, job: str, segment: Segment, unit: str) -> Marker | None:
    """Return the marker of a unit; None: it is damaged."""
    try:
        return reader.marker_at(job, segment, unit)
    except UnreadableRecordError:
        return None
