"""Running requests: in this process, or through the queue."""

from __future__ import annotations

import time
from dataclasses import dataclass

import typer

from heterotissue.progress import RichReporter, console
from heterotissue.stages import load_stage
from shared.computing import prepare
from shared.contracts.base import Request
from shared.errors import JobError
from shared.jobs import JobStatus, Ledger, run_job
from shared.queue.redis_state import read_progress
from shared.queue.worker import Dispatcher
from shared.settings import Settings, settings
from shared.storage import ObjectStore, open_store

EXIT_CODES = {"done": 0, "failed": 1, "partial": 3, "cancelled": 1}
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Target:
    """Where requests are run: a store, and a queue or this process."""

    store: ObjectStore
    config: Settings

    @classmethod
    def of(cls, store: str | None, broker: str | None) -> Target:
        """Open the target that the options and the environment name."""
        config = settings()
        if broker is not None:
            config = config.model_copy(update={"broker_url": type(config.broker_url)(broker)})
        return cls(open_store(store, config), config)

    @classmethod
    def of_config(cls, config: Settings) -> Target:
        """Open the target that settings name."""
        return cls(open_store(config=config), config)

    @property
    def queued(self) -> bool:
        """Whether requests go through the queue."""
        return bool(self.config.broker_url.get_secret_value())


def run_request(target: Target, request: Request, *, fresh: bool = False) -> JobStatus:
    """Run a request to its end, with progress, and return its final status."""
    ledger = Ledger(target.store)
    job = ledger.submit(request, fresh=fresh)
    with RichReporter(request.stage) as reporter:
        if target.queued:
            return _follow(target, ledger, job, reporter)
        prepare(target.config.threads)
        stage = load_stage(request.stage)
        return run_job(ledger, stage, job, reporter=reporter, config=target.config)


def _follow(target: Target, ledger: Ledger, job: str, reporter: RichReporter) -> JobStatus:
    dispatcher = Dispatcher(target.config)
    dispatcher.start(ledger, job)
    while True:
        status = ledger.status(job)
        reporter.phase(job, status.phase, status.phases, status.done, status.total or 1)
        if status.state not in {"planning", "running"}:
            return status
        for unit, progress in sorted(read_progress(dispatcher.redis, job).items()):
            if progress["done"] < progress["total"]:
                reporter.unit(job, unit, progress["done"], progress["total"], progress["note"])
        time.sleep(POLL_SECONDS)


def report(status: JobStatus) -> None:
    """Tell a person how a job ended."""
    color = {"done": "green", "partial": "yellow"}.get(status.state, "red")
    figures = ", ".join(f"{k} {v}" for k, v in (status.result or {}).items())
    console.print(f"{status.stage}: [{color}]{status.state}[/] {figures}", highlight=False)
    for unit, error in status.failed.items():
        console.print(f"  {unit}: {error}", highlight=False, markup=False)


def run_and_report(target: Target, request: Request, *, fresh: bool = False) -> None:
    """Run a request, report it, and leave with its exit code unless it is done."""
    end(run_request(target, request, fresh=fresh))


def end(status: JobStatus) -> None:
    """Report a job that has ended, and leave with its exit code unless it is done."""
    report(status)
    if status.state != "done":
        raise typer.Exit(EXIT_CODES[status.state])


def run_or_fail(target: Target, request: Request) -> JobStatus:
    """Run a request of a chain: what ended partial goes on, what failed stops the chain.

    Raises:
        JobError: the request failed.
    """
    status = run_request(target, request)
    report(status)
    if status.state in {"failed", "cancelled"}:
        raise JobError(f"{request.stage} ended {status.state}; what comes after it was not run")
    return status
