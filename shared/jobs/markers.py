"""The markers of finished units: reading them, summing them up, and taking them back.

The record of a segment holds the markers of its shards, once all of them are settled. It saves
whoever comes next a thousand requests, and may be deleted at any time: the markers are the truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from shared.contracts.base import Contract
from shared.contracts.jobs import Marker, job_key
from shared.jobs.plan import CACHED, SEGMENT, Segment, StoredPlan
from shared.jobs.records import (
    READERS,
    UnreadableRecordError,
    read_record,
    seal_lines,
    sealed_lines,
)
from shared.jobs.snapshot import Snapshot
from shared.storage import ObjectNotFoundError, Store


class MarkedUnit(Contract):
    """A line of a segment's record."""

    unit: str
    marker: Marker


def markers_of(snapshot: Snapshot, segment: Segment) -> dict[str, Marker | None]:
    """Return the marker of each finished shard of a segment, in order; None: it is damaged."""
    store, job = snapshot.store, snapshot.job
    if segment.name in snapshot.summed_up:
        parked = snapshot.summed_up[segment.name]
        key = job_key(job, _record(segment, parked))
        try:
            lines = map(MarkedUnit.model_validate_json, sealed_lines(key, store.get(key)))
            found: dict[str, Marker | None] = {line.unit: line.marker for line in lines}
        except (ObjectNotFoundError, UnreadableRecordError, ValidationError):
            found = {}
        if len(found) == segment.count - (parked or 0):
            return found
        forget_sum(store, job, segment)  # it is damaged
        snapshot = Snapshot(store, job)
    if snapshot.plan is None:
        return {}
    done = snapshot.done_in(segment)
    units = [shard.id for shard in snapshot.plan.shards(segment) if shard.id in done]

    def read(unit: str) -> Marker | None:
        try:
            return read_record(store, job_key(job, segment.marker(unit)), Marker)
        except UnreadableRecordError:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(units, pool.map(read, units), strict=True))


def maker_of(snapshot: Snapshot, key: str) -> str | None:
    """Return the shard that made an object, after a look at all markers; None: none did."""
    for segment in snapshot.plan.every if snapshot.plan else ():
        for unit, marker in markers_of(snapshot, segment).items():
            if marker is not None and key in marker.outputs:
                return unit
    return None


def sum_up(store: Store, job: str, plan: StoredPlan, segment: Segment) -> bool:
    """Write the record of a segment of a long plan if all its shards are settled.

    Returns:
        Whether they are. A shard whose marker is damaged is not: it is made to run again.
    """
    snapshot = Snapshot(store, job, plan)
    if segment.name in snapshot.summed_up:
        return True
    if snapshot.open_in(segment):
        return False
    found = markers_of(snapshot, segment)
    for unit, marker in found.items():
        if marker is None:
            forget(store, job, segment, unit)
            return False
    put_sum(store, job, segment, {unit: marker for unit, marker in found.items() if marker})
    there = {name.rpartition("/")[2] for name in store.list(job_key(job, segment.folder))}
    if not there.issuperset(f"{unit}.json" for unit in found):  # one was taken back meanwhile
        forget_sum(store, job, segment)
        return False
    return True


def put_sum(store: Store, job: str, segment: Segment, markers: Mapping[str, Marker]) -> None:
    """Write the record of a segment; its other shards are parked."""
    lines = (
        json.dumps(MarkedUnit(unit=unit, marker=marker).model_dump(), sort_keys=True)
        for unit, marker in markers.items()
    )
    key = job_key(job, _record(segment, segment.count - len(markers) or None))
    store.put(key, seal_lines(key, lines))


def forget(store: Store, job: str, segment: Segment, unit: str) -> None:
    """Mark a unit of a segment as not done."""
    if segment.name:
        forget_sum(store, job, segment)
    store.delete(job_key(job, segment.marker(unit)))
    if segment.name:
        # Again: whoever sums up looks for the markers before and after it writes the record.
        forget_sum(store, job, segment)


def forget_sum(store: Store, job: str, segment: Segment) -> None:
    """Delete the record of a segment."""
    store.delete_prefix(job_key(job, f"done/{segment.name}."))


def _record(segment: Segment, parked: int | None) -> str:
    return f"done/{segment.name}{'' if parked is None else f'.{parked}'}.ndjson"


class Finished(Mapping[str, dict[str, Any]]):
    """Finished shard → its summary, in the order of the plan, read segment by segment.

    Args:
        snapshot: of a job with a plan.
        read: receives each marker that is read; None for one that is damaged.
    """

    def __init__(self, snapshot: Snapshot, read: Callable[[str, Marker | None], None]) -> None:
        self._snapshot = snapshot
        self._seen = read
        short = snapshot.plan is None or snapshot.plan.total <= SEGMENT
        self._read = lru_cache(maxsize=None if short else CACHED)(self._read_segment)

    def _read_segment(self, segment: Segment) -> dict[str, Marker]:
        found: dict[str, Marker] = {}
        for unit, marker in markers_of(self._snapshot, segment).items():
            self._seen(unit, marker)
            if marker is not None:
                found[unit] = marker
        return found

    def markers(self) -> Iterator[Mapping[str, Marker]]:
        """Yield the markers of the finished shards, segment by segment."""
        return map(self._read, self._snapshot.plan.every if self._snapshot.plan else ())

    def __iter__(self) -> Iterator[str]:
        for segment in self._snapshot.plan.every if self._snapshot.plan else ():
            yield from self._read(segment)

    def __len__(self) -> int:
        return self._snapshot.shards_done

    def __getitem__(self, unit: str) -> dict[str, Any]:
        if self._snapshot.plan is None:
            raise KeyError(unit)
        segment, _ = self._snapshot.plan.find(unit)
        return self._read(segment)[unit].result
