"""The ledger of a store, which records, opens and closes the store's jobs."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any, NamedTuple

from shared.contracts.base import Request
from shared.contracts.jobs import JobRecord, JobResult, State
from shared.errors import CancelledError, InputError
from shared.jobs.markers import forget, forget_sum, sum_up
from shared.jobs.names import Claims, abandon, restore
from shared.jobs.plan import Segment, StoredPlan, open_plan
from shared.jobs.reader import CANCELLED, SHORT, Reader
from shared.jobs.records import (
    JobNotFoundError,
    LostShardsError,
    UnreadableRecordError,
    write_record,
)
from shared.jobs.reuse import missing_units
from shared.jobs.snapshot import Snapshot
from shared.jobs.stage import PLAN
from shared.models import pinned
from shared.storage import ObjectNotFoundError, file_identity, sha256
from shared.storage.makers import maker
from shared.tracing import new_traceparent

VERSION = metadata.version("heterotissue")


class Identity(NamedTuple):
    """What tells a job from others.

    Attributes:
        job: its id: owner, stage, and a hash of the request and of the content that it reads.
        inputs: SHA-256 of the records that the request reads, by key.
    """

    job: str
    inputs: dict[str, str]


class Ledger(Reader):
    """Reads and writes the objects of jobs in one store."""

    def identify(self, request: Request) -> str:
        """Return the id of a request's job. Raises as `identity`."""
        return self.identity(request).job

    def identity(self, request: Request) -> Identity:
        """Return what tells the job of a request from others.

        Raises:
            InputError: an input of the request is not in the store.
        """
        request = pinned(self.store, request)
        records = self._records(request, request.inputs())
        records |= self._records(request, request.further_inputs(records))
        inputs = {key: sha256(data) for key, data in records.items()}
        read = dict(inputs)
        for key, written in request.optional_inputs().items():
            if self.store.exists(key) and (found := self.store.get(key)) != written:
                read[key] = sha256(found)
        read |= {name: file_identity(self.store, name) for name in request.files()}
        whole = {"request": request.model_dump(mode="json"), "inputs": read}
        digest = sha256(json.dumps(whole, sort_keys=True).encode())
        own = f"{request.stage}-{digest[:16]}"
        return Identity(f"{self.owner}.{own}" if self.owner else own, inputs)

    def _records(self, request: Request, keys: Iterable[str]) -> dict[str, bytes]:
        records = {}
        for key in keys:
            try:
                records[key] = self.store.get(key)
            except ObjectNotFoundError as error:
                raise InputError(
                    f"{request.stage} needs {key}, which {self.store.url} does not hold: run "
                    f"{maker(key) or 'the stage that makes it'} first, or check the name"
                ) from error
        return records

    def submit(
        self,
        request: Request,
        *,
        fresh: bool = False,
        replace: bool = False,
        identity: Identity | None = None,
    ) -> str:
        """Record a job, before anything is queued, and return its id.

        The same request on the same inputs is the same job: if it is done and its outputs are
        there, it stays done; what is missing is made again, also of a job that is partial or was
        interrupted; if it failed or was cancelled, its missing units are tried again; if a record
        of it cannot be read, all its units are.

        Args:
            request: the request.
            fresh: delete the objects of the job first, so that all its units run again.
            replace: take the names of the result from a job of another request.
            identity: what `identity` returns, if it is known already.

        Raises:
            InputError: an input of the request cannot be read.
            NameTakenError: a name of the result belongs to a job of another request.
        """
        request = pinned(self.store, request)
        job, inputs = identity or self.identity(request)
        claims = Claims(self.store, request, job)
        earlier = claims.earlier(replace=replace)
        for other in filter(self.is_open, earlier):
            self.cancel(other)  # before its names are taken, in case this breaks off between
        claims.take()
        for other in earlier:
            abandon(self.store, other)
        fresh = fresh or not self._readable(job)
        if fresh or earlier:
            self.delete(job)
        before = self._record(job)
        if before is not None:
            result = self.result(job)
            try:
                if plan := open_plan(self.store, job):
                    deque(plan, maxlen=0)  # raises if a segment is lost, which sums do not need
                units = missing_units(self.store, job, request)
                if units is None and result is not None and result.state == "done":
                    return job
                self._forget(job, units or set())
            except LostShardsError:
                units = {PLAN}
                self._forget(job, units)
        else:
            units = None
        goes_on = before is not None and self.is_open(job) and not self.cancelled(job)
        goes_on = goes_on and PLAN not in (units or ())
        record = JobRecord(
            stage=request.stage,
            request=request.model_dump(mode="json"),
            version=VERSION,
            submission=before.submission if before and goes_on else time.time_ns(),
            trace=before.trace if before and goes_on else new_traceparent(),
            inputs=before.inputs if before else inputs,
            products=tuple(request.products()),
            earlier=before.earlier if before else None if fresh else next(reversed(earlier), None),
        )
        if before and not goes_on:
            self._forget_failures(job)
        self._open(job, record)
        return job

    def _readable(self, job: str) -> bool:
        """Say whether the records of a job, if there are any, can be read."""
        snapshot = self.snapshot(job)
        try:
            self._record(job)
            _ = snapshot.plan, snapshot.result
        except UnreadableRecordError:
            return False
        return True

    def _record(self, job: str) -> JobRecord | None:
        try:
            return self.snapshot(job).record
        except JobNotFoundError:
            return None

    def forget(self, job: str, unit: str) -> None:
        """Mark a unit as not done, so that it runs again."""
        try:
            plan = open_plan(self.store, job)
            segment = plan.find(unit)[0] if plan and unit != PLAN else None
        except (KeyError, UnreadableRecordError):
            segment = None
        forget(self.store, job, segment or SHORT, unit)

    def _forget(self, job: str, units: set[str]) -> None:
        """Mark units as not done."""
        plan = open_plan(self.store, job)
        if PLAN in units:
            # First, because a job without a plan makes it again, with all that it writes.
            self.store.delete(self.key(job, "plan.json"))
        for unit in units:
            segment = plan.find(unit)[0] if plan and unit != PLAN else SHORT
            forget(self.store, job, segment, unit)

    def _forget_failures(self, job: str) -> None:
        """Forget why units of a job failed or stopped; finished units stay done."""
        for name in ("attempts/", "failed/"):
            self.store.delete_prefix(self.key(job, name))
        for name, parked in self.snapshot(job).summed_up.items():
            if parked:
                self.store.delete(self.key(job, f"done/{name}.{parked}.ndjson"))

    def _open(self, job: str, record: JobRecord) -> None:
        """Open a job; if this breaks off before the result is gone, the job is still over."""
        write_record(self.store, self.key(job, "request.json"), record)
        self.store.delete(self.key(job, "runner.json"))  # who ran it before does so no longer
        self._put_open(job, record)
        if self.store.exists(self.key(job, "result.json")):
            self.store.delete(self.key(job, "result.json"))
            # Again, because who saw the result may have taken the job off the open ones.
            self._put_open(job, record)

    def _put_open(self, job: str, record: JobRecord) -> None:
        self.store.put(f"open-jobs/{job}", str(record.submission).encode())

    def reopen_lost(self) -> list[str]:
        """Open jobs that have no result and are not open, and return their ids.

        A store that was restored from a backup may hold such jobs: they ended, or were submitted,
        while the backup was taken.
        """
        found: dict[str, set[str]] = {"request.json": set(), "result.json": set()}
        for key, _ in self.store.dates("jobs/"):  # there may be too many keys to hold
            job, _, name = key.removeprefix("jobs/").partition("/")
            if name in found:
                found[name].add(job)
        lost = sorted(found["request.json"] - found["result.json"] - set(self.open_jobs()))
        for job in lost:
            self.store.put(f"open-jobs/{job}", b"")  # which `tidy` completes
        return lost

    def delete(self, job: str) -> None:
        """Delete the records of a job; if this breaks off, the job is not done, nor open."""
        self.store.delete(f"open-jobs/{job}")
        self.store.delete(self.key(job, "result.json"))
        self.store.delete_prefix(self.key(job, ""))

    def tidy(self, job: str) -> bool:
        """Complete what broke off while an open job was opened, cancelled or closed.

        Returns:
            Whether the job is open.

        Raises:
            UnreadableRecordError: the record of the job is damaged.
        """
        if self.result(job) is not None:
            self.store.delete(f"open-jobs/{job}")
            return False
        try:
            number = self.store.get(f"open-jobs/{job}").decode(errors="replace")
        except ObjectNotFoundError:  # it has ended meanwhile
            return False
        try:
            record = self.snapshot(job).record
        except JobNotFoundError:
            self.store.delete(f"open-jobs/{job}")
            return False
        if number == CANCELLED:
            with suppress(CancelledError):  # it is deleted, or was submitted again
                self.close(job, "cancelled", None)
            return False
        if number != str(record.submission):
            self._put_open(job, record)
        restore(self.store, record.products, job)
        return True

    def waiting(self, job: str) -> Iterator[str]:
        """Yield the unsettled units of the current phase, and sum up the segments that are settled.

        There are none if the job is not open.
        """
        number = self.opened(job)
        if number is None or number == CANCELLED:
            return
        try:
            yield from self._waiting(job, number)
        except CancelledError:
            return
        except UnreadableRecordError as error:
            if self.opened(job) != number:  # it is gone, because the job was submitted again
                return
            if not isinstance(error, LostShardsError):
                raise
            self.forget_plan(job)
            yield PLAN

    def forget_plan(self, job: str) -> None:
        """Let the plan be made again; what its shards have made stays."""
        self._forget(job, {PLAN})

    def _waiting(self, job: str, number: str) -> Iterator[str]:
        plan = self.known(job, number)[1]
        snapshot = Snapshot(self.store, job, plan)
        if snapshot.result is not None:
            return
        for phase in range(len(plan.counts)) if plan else ():
            found = changed = False
            for segment in plan.segments(phase) if plan else ():
                if units := snapshot.open_in(segment):
                    found = True
                    yield from units
                elif plan and segment.name and segment.name not in snapshot.summed_up:
                    changed = True
                    found = not self._sum_up(job, plan, segment, number) or found
            if found:
                return
            if changed:
                snapshot = Snapshot(self.store, job, plan)
            if not snapshot.complete(phase):
                break
        yield from snapshot.waiting()[1]

    def _sum_up(self, job: str, plan: StoredPlan, segment: Segment, number: str) -> bool:
        """Sum up a segment if all its shards are settled; say whether they are.

        Raises:
            CancelledError: the job is over, or was submitted again.
        """
        if self.opened(job) != number:
            raise CancelledError(job)
        settled = sum_up(self.store, job, plan, segment)
        if self.opened(job) != number:  # what came late must not spoil a newer submission
            forget_sum(self.store, job, segment)
            raise CancelledError(job)
        return settled

    def cancel(self, job: str) -> None:
        """Stop a job: running units end at their next progress report."""
        if self.result(job) is not None:
            return
        self.store.put(f"open-jobs/{job}", CANCELLED.encode())
        self.close(job, "cancelled", None)

    def close(
        self,
        job: str,
        state: State,
        result: dict[str, Any] | None,
        *,
        outputs: dict[str, str] | None = None,
        removed: Iterable[str] = (),
        submission: str | None = None,
    ) -> None:
        """Write the job's result, and remove the job from the open jobs.

        Args:
            job: id of the job.
            state: the state in which it has ended.
            result: result of the stage; None without one.
            outputs: key → SHA-256 of each object that `finish` wrote.
            removed: keys of objects that `finish` deleted.
            submission: the submission that has ended; None: the present one.

        Raises:
            CancelledError: the job was submitted again meanwhile, and stays open.
        """
        ended = int(submission) if submission else self._submission(job)
        record = JobResult(
            submission=ended or 0,
            state=state,
            result=result,
            failed=self.errors(job),
            outputs=outputs or {},
            removed=tuple(sorted(removed)),
        )
        write_record(self.store, self.key(job, "result.json"), record)
        if self.opened(job) in (None, CANCELLED, str(ended)):
            self.store.delete(f"open-jobs/{job}")
        # Whoever submits writes the record first, and then opens the job.
        present = self._submission(job)
        if present == ended:
            return
        if present is None:  # it is deleted
            self.store.delete(self.key(job, "result.json"))
        else:
            self._put_open(job, self.snapshot(job).record)
        raise CancelledError(job)

    def _submission(self, job: str) -> int | None:
        """Return the number of a job's last submission; None: it is deleted; 0: not readable."""
        try:
            record = self._record(job)
        except UnreadableRecordError:
            return 0
        return record.submission if record else None
