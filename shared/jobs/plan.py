"""The plan of a job in the store.

A plan of at most `SEGMENT` shards is one object, and the markers of its units lie side by side.
A longer one is cut into segments of `SEGMENT` shards in the order of their ids. Each segment has an
object of its own (NDJSON, a shard per line) and a folder for its markers, so that a unit reads and
lists a thousand names at most, however long the plan is.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import merge
from itertools import chain, islice, pairwise

from pydantic import ValidationError, model_validator

from shared.contracts.base import Contract
from shared.contracts.jobs import job_key
from shared.jobs.records import (
    LostShardsError,
    UnreadableRecordError,
    read_record,
    seal_lines,
    sealed_lines,
    write_record,
)
from shared.jobs.stage import FINISH, PLAN, Plan, Shard
from shared.storage import ObjectNotFoundError, Store

SEGMENT = 1000
"""Number of shards in a segment of a new plan."""

CACHED = 4
"""Number of segments whose shards a plan keeps in memory."""

Keep = Callable[["Segment", tuple[Shard, ...]], tuple[Shard, ...]]
"""Says which shards of a segment are kept from an earlier job (`shared.jobs.reuse`)."""


@dataclass(frozen=True)
class Segment:
    """Shards of a phase that lie together: `count` of them.

    Attributes:
        phase, number: number of the phase in the plan, and of the segment in the phase.
        name: name of its objects; empty for the only segment of a phase of a short plan.
    """

    phase: int
    number: int
    count: int
    name: str

    @property
    def folder(self) -> str:
        """The folder of its markers, below the job's."""
        return f"done/{self.name}/" if self.name else "done/"

    def marker(self, unit: str) -> str:
        """Return the name of a unit's marker, below the job's folder."""
        return f"{self.folder}{unit}.json"


class LongPhase(Contract):
    """A phase of a long plan, whose shards lie in objects of their own.

    Attributes:
        count: number of shards.
        size: number of shards in a segment; the last one may have fewer.
        first: id of the first shard of each segment, ascending.
        last: id of the last shard.
    """

    count: int
    size: int
    first: tuple[str, ...]
    last: str


class PlanRecord(Contract):
    """The object `plan.json`."""

    phases: tuple[tuple[Shard, ...] | LongPhase, ...]

    @model_validator(mode="after")
    def _distinct(self) -> PlanRecord:
        ids = [shard.id for phase in self.phases if isinstance(phase, tuple) for shard in phase]
        if len(set(ids)) != len(ids) or {PLAN, FINISH} & set(ids):
            raise ValueError("shard ids must differ, and must not be 'plan' or 'finish'")
        return self


class StoredPlan:
    """The plan of a job as it lies in the store; shards are read when they are asked for."""

    def __init__(self, store: Store, job: str, record: PlanRecord) -> None:
        self.store, self.job, self.record = store, job, record
        self.counts = tuple(
            len(phase) if isinstance(phase, tuple) else phase.count for phase in record.phases
        )
        self.total = sum(self.counts)
        self._read = lru_cache(maxsize=CACHED)(self._read_segment)

    def segments(self, phase: int) -> Sequence[Segment]:
        """Return the segments of a phase, in order."""
        return self._segments[phase]

    @cached_property
    def _segments(self) -> tuple[tuple[Segment, ...], ...]:
        """The segments of each phase."""

        def segments(phase: int, record: tuple[Shard, ...] | LongPhase) -> Iterator[Segment]:
            if isinstance(record, LongPhase):
                yield from (_segment(phase, number, record) for number in range(len(record.first)))
            elif record:
                yield Segment(phase, 0, len(record), "")

        return tuple(tuple(segments(*item)) for item in enumerate(self.record.phases))

    @property
    def every(self) -> Iterator[Segment]:
        """The segments of all phases, in order."""
        return chain.from_iterable(self._segments)

    def shards(self, segment: Segment) -> Sequence[Shard]:
        """Return the shards of a segment. Raises `LostShardsError`."""
        record = self.record.phases[segment.phase]
        return record if isinstance(record, tuple) else tuple(self._read(segment).values())

    def phase(self, phase: int) -> Iterator[Shard]:
        """Yield the shards of a phase, in order."""
        return chain.from_iterable(map(self.shards, self.segments(phase)))

    def __iter__(self) -> Iterator[Shard]:
        return chain.from_iterable(map(self.shards, self.every))

    def find(self, id: str) -> tuple[Segment, Shard]:
        """Return a shard by its id, and its segment. Raises KeyError."""
        if id in self._short:
            return self._short[id]
        for number, phase in enumerate(self.record.phases):
            if isinstance(phase, LongPhase) and phase.first and phase.first[0] <= id <= phase.last:
                segment = _segment(number, bisect_right(phase.first, id) - 1, phase)
                if (shard := self._read(segment).get(id)) is not None:
                    return segment, shard
        raise KeyError(id)

    @cached_property
    def _short(self) -> dict[str, tuple[Segment, Shard]]:
        """The shards of phases that lie in the plan's own object."""
        return {
            shard.id: (segment, shard)
            for segment in self.every
            if not segment.name
            for shard in self.shards(segment)
        }

    def _read_segment(self, segment: Segment) -> dict[str, Shard]:
        key = job_key(self.job, _object(segment))
        try:
            lines = sealed_lines(key, self.store.get(key))
            shards = {shard.id: shard for shard in map(Shard.model_validate_json, lines)}
        except ObjectNotFoundError as error:
            raise LostShardsError(key, "it is gone") from error
        except (UnreadableRecordError, ValidationError) as error:
            raise LostShardsError(key, "it was changed, or is cut off") from error
        if len(shards) != segment.count:
            raise LostShardsError(key, f"{len(shards)} shards instead of {segment.count}")
        return shards


def open_plan(store: Store, job: str) -> StoredPlan | None:
    """Open the plan of a job; None: it is not made yet. Raises `UnreadableRecordError`."""
    key = job_key(job, "plan.json")
    try:
        return StoredPlan(store, job, read_record(store, key, PlanRecord))
    except ObjectNotFoundError:
        return None


def store_plan(
    store: Store, job: str, plan: Plan, keep: Keep = lambda _, shards: shards
) -> StoredPlan:
    """Write the plan of a job, segment by segment; `plan.json` is the last object.

    Raises:
        ValueError: ids of shards are not distinct, or a phase that is no sequence does not yield
            them in ascending order.
    """
    phases = [_counted(phase) for phase in plan.phases]
    counts = [len(phase) for phase in phases if isinstance(phase, Sequence)]
    if len(counts) == len(phases) and sum(counts) <= SEGMENT:
        short = [tuple(phase) for phase in phases]
        PlanRecord(phases=tuple(short))  # which checks the ids
        record = PlanRecord(
            phases=tuple(
                keep(Segment(number, 0, len(phase), ""), phase)
                for number, phase in enumerate(short)
            )
        )
    else:
        long = [_store_phase(store, job, number, each, keep) for number, each in enumerate(phases)]
        record = PlanRecord(phases=tuple(long))
    stored = StoredPlan(store, job, record)
    _check_distinct(stored)
    write_record(store, job_key(job, "plan.json"), record)
    return stored


def _counted(phase: Iterable[Shard]) -> Sequence[Shard] | Iterator[Shard]:
    """Return a phase as a sequence if it has at most `SEGMENT` shards, or is one."""
    if isinstance(phase, Sequence):
        return phase
    shards = iter(phase)
    start = list(islice(shards, SEGMENT + 1))
    return start if len(start) <= SEGMENT else chain(start, shards)


def _store_phase(
    store: Store, job: str, number: int, phase: Iterable[Shard], keep: Keep
) -> LongPhase:
    shards = iter(sorted(phase, key=lambda s: s.id) if isinstance(phase, Sequence) else phase)
    first: list[str] = []
    count, last = 0, ""
    while chunk := tuple(islice(shards, SEGMENT)):
        ids = [shard.id for shard in chunk]
        if any(a >= b for a, b in pairwise([last, *ids])) or {PLAN, FINISH} & set(ids):
            raise ValueError(
                "shard ids of a phase must differ and ascend, and must not be 'plan' or 'finish'"
            )
        segment = Segment(number, len(first), len(chunk), _name(number, len(first)))
        lines = (
            json.dumps(shard.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
            for shard in keep(segment, chunk)
        )
        key = job_key(job, _object(segment))
        store.put(key, seal_lines(key, lines))
        first.append(ids[0])
        count, last = count + len(chunk), ids[-1]
    return LongPhase(count=count, size=SEGMENT, first=tuple(first), last=last)


def _check_distinct(plan: StoredPlan) -> None:
    """Raise ValueError if phases share an id; their ids are read again only if they may."""
    spans = sorted(
        (phase.first[0], phase.last, number)
        for number, phase in enumerate(plan.record.phases)
        if isinstance(phase, LongPhase) and phase.first
    )
    if all(before[1] < after[0] for before, after in pairwise(spans)):
        return
    ids = merge(*((shard.id for shard in plan.phase(number)) for *_, number in spans))
    if any(one == other for one, other in pairwise(ids)):
        raise ValueError("shard ids of different phases must differ")


def _segment(phase: int, number: int, record: LongPhase) -> Segment:
    """Return a segment of a long phase."""
    count = min(record.size, record.count - number * record.size)
    return Segment(phase, number, count, _name(phase, number))


def _name(phase: int, number: int) -> str:
    return f"{phase:03d}-{number:06d}"


def _object(segment: Segment) -> str:
    return f"plan/{segment.name}.ndjson"
