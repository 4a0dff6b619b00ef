"""A snapshot of a job: its objects, read once, and the state that follows from them.

What is done follows from the names below `done/`: those of the markers of a short plan; of a long
one, those of the segments that are summed up, and those of the markers in the other segments. So
it takes about as many requests for a million shards as for a hundred.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from typing import TypeVar

from pydantic import BaseModel

from shared.contracts.jobs import JobRecord, JobResult, JobStatus, ParkedUnit, State, job_key
from shared.jobs.plan import Segment, StoredPlan, open_plan
from shared.jobs.records import READERS, JobNotFoundError, UnreadableRecordError, read_record
from shared.jobs.stage import FINISH, PLAN
from shared.storage import ObjectNotFoundError, Store

M = TypeVar("M", bound=BaseModel)

_SUM = re.compile(r"([0-9]+-[0-9]+)(?:\.([0-9]+))?\.ndjson")
"""The record of a segment: its name, and the number of its parked shards if there are any."""


def stage_of(job: str) -> str:
    """Return the name of a job's stage, which is part of the job's id."""
    return job.rpartition(".")[2].rpartition("-")[0]


class Snapshot:
    """The objects of a job, each read when it is first needed and then kept.

    Later changes are seen only by a new snapshot.

    Args:
        store, job: the job, and the store that holds it.
        plan: the job's plan, if it is known already.
    """

    def __init__(self, store: Store, job: str, plan: StoredPlan | None = None) -> None:
        self.store = store
        self.job = job
        if plan is not None:
            self.plan = plan
        self._listed: dict[str, frozenset[str]] = {}

    @cached_property
    def record(self) -> JobRecord:
        """The job as it was submitted. Raises `JobNotFoundError`."""
        record = self._read("request.json", JobRecord)
        if record is None:
            raise JobNotFoundError(
                f"{self.store.url} holds no job {self.job!r}: 'htd jobs' lists them"
            )
        return record

    @cached_property
    def plan(self) -> StoredPlan | None:
        """The job's plan, or None if it is not made yet."""
        return open_plan(self.store, self.job)

    @cached_property
    def result(self) -> JobResult | None:
        """The job's final state and result, or None while the job is open.

        A result that a worker has written too late, of an earlier submission, is none.
        """
        found = self._read("result.json", JobResult)
        if found is None or not found.submission:
            return found
        try:
            return found if self.record.submission in (0, found.submission) else None
        except JobNotFoundError:
            return None

    @cached_property
    def _entries(self) -> frozenset[str]:
        """The names directly below `done/`."""
        return frozenset(self.store.entries(job_key(self.job, "done/")))

    @cached_property
    def summed_up(self) -> dict[str, int | None]:
        """Name of each segment that is summed up → number of its parked shards; None: nothing.

        The record of a segment is `done/<name>.ndjson`, or `done/<name>.<parked>.ndjson`.
        """
        found = filter(None, map(_SUM.fullmatch, self._entries))
        return {each[1]: int(each[2]) if each[2] else None for each in found}

    def done_in(self, segment: Segment) -> frozenset[str]:
        """Return the shards of a segment that are done; of a short plan, all units that are."""
        if not segment.name:
            return self._flat
        if self.whole(segment):
            return (
                frozenset(shard.id for shard in self.plan.shards(segment))
                if self.plan
                else self._flat
            )
        if segment.name not in self._listed:
            begun = f"{segment.name}/" in self._entries
            self._listed[segment.name] = self._units(segment.folder) if begun else frozenset()
        return self._listed[segment.name]

    def whole(self, segment: Segment) -> bool:
        """Say whether a segment is summed up, and all its shards are done."""
        return self.summed_up.get(segment.name, 0) is None

    def count_done(self, segment: Segment) -> int:
        """Return how many shards of a segment are done."""
        if self.whole(segment):
            return segment.count
        if segment.name in self.summed_up:
            return segment.count - (self.summed_up[segment.name] or 0)
        done = self.done_in(segment)
        if segment.name or self.plan is None:
            return len(done)
        return sum(shard.id in done for shard in self.plan.shards(segment))

    @cached_property
    def _flat(self) -> frozenset[str]:
        ends = ".json"
        return frozenset(n.removesuffix(ends) for n in self._entries if n.endswith(ends))

    def is_done(self, unit: str) -> bool:
        """Say whether a unit is done."""
        if unit in self._flat:
            return True
        if unit in (PLAN, FINISH) or self.plan is None:
            return False
        try:
            segment, _ = self.plan.find(unit)
        except KeyError:
            return False
        return unit in self.done_in(segment)

    @cached_property
    def done(self) -> frozenset[str]:
        """Units that are done, including the plan: all names, so it is for short plans."""
        segments = self.plan.every if self.plan else ()
        return self._flat.union(*(self.done_in(segment) for segment in segments))

    @cached_property
    def failures(self) -> frozenset[str]:
        """Units that were given up, including those that another run has finished."""
        return self._units("failed/")

    @cached_property
    def parked(self) -> frozenset[str]:
        """Units that were given up, except those that another run has finished."""
        return frozenset(unit for unit in self.failures if not self.is_done(unit))

    @cached_property
    def errors(self) -> dict[str, str]:
        """Parked unit → its last error, from the records of the units."""

        def error(unit: str) -> str:
            try:
                record = self._read(f"failed/{unit}.json", ParkedUnit)
            except UnreadableRecordError as error:
                return str(error)
            return record.error if record else "its error was deleted"

        units = sorted(self.parked)
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(units, pool.map(error, units), strict=True)) if units else {}

    @property
    def wrong_input(self) -> bool:
        """Whether units were given up, all of them because of their input."""
        records = (self._read(f"failed/{unit}.json", ParkedUnit) for unit in self.parked)
        return bool(self.parked) and all(record and record.wrong_input for record in records)

    @property
    def failed(self) -> dict[str, str]:
        """Parked unit → its last error, from the job's result once there is one."""
        return self.errors if self.result is None else self.result.failed

    @property
    def state(self) -> State:
        """The job's state."""
        if self.result is not None:
            return self.result.state
        return "running" if self.plan is not None else "planning"

    def waiting(self) -> tuple[int, Iterator[str]]:
        """Return the current phase (-1 while planning), and its units that are not settled.

        The units are 'plan' before there is a plan, and 'finish' when every phase is done or a
        phase ended with a parked shard; there are none once the job has a result.
        """
        if self.result is not None:
            return 0, iter(())
        if self.plan is None:
            return -1, iter([FINISH if PLAN in self.parked else PLAN])
        phases = range(len(self.plan.counts))
        for phase in phases:
            units = chain.from_iterable(map(self.open_in, self.plan.segments(phase)))
            if (first := next(units, None)) is not None:
                return phase, chain([first], units)
            if not self.complete(phase):
                break
        return len(phases), iter([FINISH])

    def open_in(self, segment: Segment) -> list[str]:
        """Return the shards of a segment that are neither done nor parked, large ones first."""
        if segment.name in self.summed_up or self.plan is None:
            return []
        done = self.done_in(segment)
        shards = [shard for shard in self.plan.shards(segment) if shard.id not in done]
        if shards and self.failures:
            shards = [shard for shard in shards if shard.id not in self.failures]
        return [shard.id for shard in sorted(shards, key=lambda shard: -shard.size)]

    def complete(self, phase: int) -> bool:
        """Say whether all shards of a phase are done."""
        segments = self.plan.segments(phase) if self.plan else []
        return all(self.whole(each) or self.count_done(each) == each.count for each in segments)

    @property
    def runnable(self) -> tuple[int, list[str]]:
        """What `waiting` returns, as a list, which is for short plans."""
        phase, units = self.waiting()
        return phase, list(units)

    def status(self) -> JobStatus:
        """Compute the job's status; with an unreadable record, the job has failed.

        Raises:
            JobNotFoundError: the store holds no such job.
        """
        try:
            return self._status()
        except UnreadableRecordError as error:
            return JobStatus(
                job=self.job, stage=stage_of(self.job), state="failed", phase=0, phases=0, done=0,
                total=0, failed={"record": str(error)}, result=None,
            )  # fmt: skip

    def _status(self) -> JobStatus:
        stage, plan = self.record.stage, self.plan
        return JobStatus(
            job=self.job,
            stage=stage,
            state=self.state,
            phase=self._phase,
            phases=len(plan.counts) if plan else 0,
            done=self.shards_done,
            total=plan.total if plan else 0,
            failed=self.failed,
            result=self.result.result if self.result else None,
        )

    def last_done(self, count: int) -> list[tuple[Segment, str]]:
        """Return at most `count` finished shards: the last ones of the last segment with any."""
        for segment in reversed(list(self.plan.every if self.plan else ())):
            if self.plan and self.count_done(segment):
                done = self.done_in(segment)
                ids = [shard.id for shard in self.plan.shards(segment) if shard.id in done]
                return [(segment, id) for id in ids[-count:]]
        return []

    @property
    def _phase(self) -> int:
        if self.plan is None or self.result is not None:
            return 0
        if self.failures:
            return self.waiting()[0]
        phases = range(len(self.plan.counts))
        return next((phase for phase in phases if not self.complete(phase)), len(phases))

    @cached_property
    def shards_done(self) -> int:
        """The number of finished shards."""
        return sum(map(self.count_done, self.plan.every)) if self.plan else 0

    def _read(self, name: str, model: type[M]) -> M | None:
        try:
            return read_record(self.store, job_key(self.job, name), model)
        except ObjectNotFoundError:
            return None

    def _units(self, folder: str) -> frozenset[str]:
        prefix = job_key(self.job, folder)
        keys = self.store.list(prefix)
        return frozenset(key.removeprefix(prefix).removesuffix(".json") for key in keys)
