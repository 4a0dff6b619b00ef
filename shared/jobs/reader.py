"""Reading the jobs of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from shared.contracts.base import Request
from shared.contracts.jobs import JobRecord, JobResult, JobStatus, Marker, job_key
from shared.errors import CancelledError
from shared.jobs.markers import markers_of
from shared.jobs.plan import Segment, StoredPlan, open_plan
from shared.jobs.records import JobNotFoundError, read_record
from shared.jobs.snapshot import Snapshot
from shared.storage import ObjectNotFoundError, Store

R = TypeVar("R", bound=Request)

CANCELLED = "cancelled"
"""Content of `open-jobs/<job>` from a cancellation on until the job has its result."""


KNOWN_JOBS = 16
"""Number of jobs whose plans and requests a ledger keeps in memory."""

SHORT = Segment(0, 0, 0, "")
"""Where the markers of a short plan lie, and that of every plan."""


class Reader:
    """Reads the objects of jobs in one store; `Ledger` writes them too.

    Args:
        store: the store that holds the jobs.
        owner: name of the tenant that owns the store; empty for the local tenant. Job ids start
            with it, so that jobs of several tenants can share a queue.
        open_root: opens the root of the store, of which a tenant owns a part; None: `store` is it.
    """

    def __init__(
        self, store: Store, owner: str = "", open_root: Callable[[], Store] | None = None
    ) -> None:
        self.store = store
        self.owner = owner
        self.open_root = open_root
        self._known: dict[tuple[str, str], tuple[str, JobRecord, StoredPlan]] = {}
        self._requests: dict[tuple[str, str], Request] = {}

    @staticmethod
    def key(job: str, name: str) -> str:
        """Return the key of an object of a job."""
        return job_key(job, name)

    def opened(self, job: str) -> str | None:
        """Return the number of the submission under which a job is open, as text.

        It is `CANCELLED` if a cancellation has begun, and None if the job is not open. One that
        broke off while it was closed may still look open, until `tidy` sees to it.
        """
        try:
            number = self.store.get(f"open-jobs/{job}").decode(errors="replace")
            return number or str(self.snapshot(job).record.submission)  # by an earlier version
        except (ObjectNotFoundError, JobNotFoundError):
            return None

    def open_jobs(self) -> list[str]:
        """Return the ids of the jobs that have no result yet."""
        return [key.removeprefix("open-jobs/") for key in self.store.list("open-jobs/")]

    def is_open(self, job: str) -> bool:
        """Say whether the job exists and has no result yet.

        A job whose closing broke off has a result, and is over; `tidy` cleans up.
        """
        return self.store.exists(f"open-jobs/{job}") and self.result(job) is None

    def jobs(self, stage: str = "") -> Iterator[str]:
        """Yield the ids of all jobs, or of those of a stage, sorted."""
        owner = f"{self.owner}." if self.owner else ""
        return self.store.folders("jobs/", f"{owner}{stage}-" if stage else "")

    def known(self, job: str, submission: str) -> tuple[JobRecord, StoredPlan | None]:
        """Return the record and the plan of a submission, which are kept until the plan changes.

        Raises:
            CancelledError: the job was submitted again, or is deleted.
        """
        try:
            tag = self.store.stat(self.key(job, "plan.json")).tag
        except ObjectNotFoundError:
            tag = ""
        kept = self._known.get((job, submission))
        if kept is not None and kept[0] == tag:
            return kept[1:]
        snapshot = self.snapshot(job)
        try:
            record, plan = snapshot.record, snapshot.plan
        except JobNotFoundError:
            raise CancelledError(job) from None
        if str(record.submission) != submission:
            raise CancelledError(job)
        if plan is not None:
            while len(self._known) >= KNOWN_JOBS:
                self._known.pop(next(iter(self._known)))
            self._known[job, submission] = tag, record, plan
        return record, plan

    def known_request(self, job: str, submission: str, model: type[R]) -> R:
        """Return the request of a submission; it is parsed once, because all its units need it.

        Raises:
            CancelledError: the job was submitted again, or is deleted.
            ValidationError: it is not a request of this version.
        """
        found = self._requests.get((job, submission))
        if not isinstance(found, model):
            found = model.model_validate(self.known(job, submission)[0].request)
            while len(self._requests) >= KNOWN_JOBS:
                self._requests.pop(next(iter(self._requests)))
            self._requests[job, submission] = found
        return found

    def snapshot(self, job: str) -> Snapshot:
        """Return a view of a job that reads each object at its first use, and then keeps it."""
        return Snapshot(self.store, job)

    def stage(self, job: str) -> str:
        """Return the name of the job's stage. Raises `JobNotFoundError`."""
        return self.snapshot(job).record.stage

    def request(self, job: str) -> dict[str, Any]:
        """Return the job's request as plain JSON. Raises `JobNotFoundError`."""
        return self.snapshot(job).record.request

    def plan(self, job: str) -> StoredPlan | None:
        """Return the job's plan, or None if it is not made yet."""
        return self.snapshot(job).plan

    def result(self, job: str) -> JobResult | None:
        """Return the job's final state and result, or None while the job is open."""
        return self.snapshot(job).result

    def cancelled(self, job: str) -> bool:
        """Say whether a cancellation of the open job has begun."""
        return self.opened(job) == CANCELLED

    def done(self, job: str) -> frozenset[str]:
        """Return the units that are done, including the plan: all names; for short plans."""
        return self.snapshot(job).done

    def is_done(self, job: str, unit: str) -> bool:
        """Say whether the unit is done."""
        return self.snapshot(job).is_done(unit)

    def marker(self, job: str, unit: str) -> Marker:
        """Return the marker of a finished unit.

        Raises:
            ObjectNotFoundError: the unit is not done.
            UnreadableRecordError: the marker is damaged.
        """
        try:
            return read_record(self.store, self.key(job, SHORT.marker(unit)), Marker)
        except ObjectNotFoundError:
            plan = open_plan(self.store, job)
            if plan is None:
                raise
            try:
                segment, _ = plan.find(unit)
            except KeyError:
                segment = SHORT
            return self.marker_at(job, segment, unit)

    def marker_at(self, job: str, segment: Segment, unit: str) -> Marker:
        """Return the marker of a finished shard of a segment. Raises as `marker`."""
        try:
            return read_record(self.store, self.key(job, segment.marker(unit)), Marker)
        except ObjectNotFoundError:
            snapshot = self.snapshot(job)
            if segment.name not in snapshot.summed_up:
                raise
            # A backup may have no more than the record of the segment.
            marker = markers_of(snapshot, segment).get(unit)
            if marker is None:
                raise
            return marker

    def runnable(self, job: str) -> tuple[int, list[str]]:
        """Return the current phase and its unsettled units; see `Snapshot.runnable`."""
        return self.snapshot(job).runnable

    def errors(self, job: str) -> dict[str, str]:
        """Return the last error of each parked unit."""
        return self.snapshot(job).errors

    def find(self, job: str) -> JobStatus | None:
        """Return the job's status, or None if the job is missing or deleted during the read."""
        try:
            return self.status(job)
        except (JobNotFoundError, ObjectNotFoundError):
            return None

    def status(self, job: str) -> JobStatus:
        """Compute the job's status from its objects. Raises `JobNotFoundError`."""
        return self.snapshot(job).status()
