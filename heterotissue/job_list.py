"""The jobs of a store with their names, times and true states."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import psutil
from rich.table import Table

from heterotissue.job_report import name_of
from heterotissue.progress import duration
from shared.contracts.base import Contract
from shared.contracts.jobs import ENDED, JobStatus, job_key
from shared.jobs import Ledger, UnreadableRecordError
from shared.settings import settings
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store

COLORS = {"done": "green", "partial": "yellow", "planning": "cyan", "running": "cyan"}


class Runner(Contract):
    """The process that runs an open job, if it is not a worker; `jobs/<id>/runner.json`."""

    host: str
    pid: int
    started: float

    @classmethod
    def here(cls) -> Runner:
        """Describe this process."""
        own = psutil.Process()
        return cls(host=platform.node(), pid=own.pid, started=own.create_time())

    def ended(self) -> bool:
        """Say whether this process is known to have ended; one of another host never is."""
        if self.host != platform.node():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True


class JobLine(NamedTuple):
    """A job in the list.

    Attributes:
        status: its status.
        state: the state for people: as in `status`, or 'interrupted' if nobody works on it.
        name: what it makes, such as a cohort; empty if unknown.
        submitted: time of its last submission; None if unknown.
        ended: time of its result; None while it is open.
    """

    status: JobStatus
    state: str
    name: str = ""
    submitted: datetime | None = None
    ended: datetime | None = None


def sign(store: Store, job: str) -> None:
    """Note that this process runs an open job, so that a list tells when it is interrupted."""
    store.put_json(job_key(job, "runner.json"), Runner.here())


def stored_jobs(store: Store) -> list[JobLine]:
    """List the jobs of a store, the oldest first.

    A job is interrupted if it is open, and the process that ran it has ended; or, where that
    process is not known, if nothing was written for longer than any shard may take.
    """
    ledger = Ledger(store)
    lines = []
    for job in ledger.jobs():
        status = ledger.find(job)
        dates = dict(store.dates(job_key(job, "re")))  # request.json and result.json
        if status is None or not dates:
            continue  # it was deleted meanwhile
        try:
            name = name_of(status.stage, ledger.request(job))
        except UnreadableRecordError:
            name = ""
        lines.append(
            JobLine(
                status,
                state_of(store, status),
                name,
                dates.get(job_key(job, "request.json")),
                dates.get(job_key(job, "result.json")),
            )
        )
    return sorted(lines, key=lambda line: line.submitted or datetime.min.replace(tzinfo=UTC))


def state_of(store: Store, status: JobStatus) -> str:
    """Return the state of a job for people; see `stored_jobs`."""
    interrupted = status.state not in ENDED and _left(store, status.job)
    return "interrupted" if interrupted else status.state


def _left(store: Store, job: str) -> bool:
    """Say whether nobody works on a job without a result."""
    if not store.exists(f"open-jobs/{job}"):
        return True
    try:
        return store.get_model(job_key(job, "runner.json"), Runner).ended()
    except (ObjectNotFoundError, DamagedObjectError):  # workers of a queue run it
        last = max(date for _, date in store.dates(job_key(job, "")))
        return time.time() - last.timestamp() > settings().visibility_timeout


def job_table(lines: Iterable[JobLine]) -> Table:
    """Make a table of jobs: id, name, state, shards, times."""
    table = Table("job", "name", "state", "done", "failed", "submitted", "took", box=None)
    for line in lines:
        status = line.status
        submitted, took = "", ""
        if line.submitted is not None:
            submitted = line.submitted.astimezone().strftime("%Y-%m-%d %H:%M")
            end = line.ended or datetime.now(UTC)
            took = duration(max(0.0, (end - line.submitted).total_seconds()))
            took = took if line.ended else f"open {took}"
        color = COLORS.get(line.state, "red")
        table.add_row(
            status.job,
            line.name,
            f"[{color}]{line.state}[/]",
            f"{status.done}/{status.total}",
            str(len(status.failed)),
            submitted,
            took,
        )
    return table
