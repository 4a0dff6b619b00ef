"""Run requests: in this process, or on workers through the queue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from heterotissue.checks import notes
from heterotissue.job_list import sign
from heterotissue.job_report import failed_by_input, report, write_table
from heterotissue.progress import console, say, show_progress
from heterotissue.stages import load_stage
from shared.computing import prepare
from shared.contracts.base import Request
from shared.contracts.jobs import ENDED, WITHOUT_RESULT
from shared.errors import InputError, JobError, printable
from shared.jobs import JobStatus, Ledger, Reporter, run_job
from shared.settings import Settings, settings
from shared.storage import OverlayStore, Store, open_store

POLL_SECONDS, WATCH_SECONDS = 0.5, 2.0
WITHOUT_QUEUE = "store"
"""The broker of those who have none: `htd work` finds the open jobs in the store."""

LISTENER_SECONDS = 30.0
"""Seconds between two questions whether a worker listens."""


@dataclass(frozen=True)
class Target:
    """The place where requests are run: a store, and either a queue or this process.

    With a broker in its settings, requests go through the queue to workers that use the same
    store. Without one they run here. In a dry run nothing is run, and the store is only read.
    """

    store: Store
    config: Settings
    dry_run: bool = False

    @classmethod
    def of(cls, store: str | None, broker: str | None, dry_run: bool = False) -> Target:
        """Open a target by the addresses of its store and broker.

        Args:
            store: address of the store; None: HTD_STORE.
            broker: address of the broker; None: HTD_BROKER_URL; "": run in this process;
                'store': leave the work to processes of `htd work`, which need no queue.
            dry_run: keep what is written apart from the store, and run nothing.

        Raises:
            InputError: an address is not valid.
        """
        config = settings()
        if broker is not None:
            config = config.model_copy(update={"broker_url": type(config.broker_url)(broker)})
        url = config.broker_url.get_secret_value()
        if url and url != WITHOUT_QUEUE:
            from shared.queue.redis_state import connect

            connect(url)  # which raises for a malformed address; it does not reach out yet
        opened = open_store(store, config)
        return cls(OverlayStore(opened) if dry_run else opened, config, dry_run)

    @classmethod
    def of_config(cls, config: Settings) -> Target:
        """Open the target whose store and broker are those of `config`."""
        return cls(open_store(config=config), config)

    @property
    def folder(self) -> Path | None:
        """The store's folder on this machine; None for a store on a server."""
        path = Path(self.store.url)
        return path if path.is_absolute() else None

    @property
    def queued(self) -> bool:
        """Whether requests go through the queue."""
        return bool(self.config.broker_url.get_secret_value())


def run(request: Request, store: Store, *, fresh: bool = False, replace: bool = False) -> JobStatus:
    """Run a request in this process, with a progress bar.

    A request that is done already returns at once, if nothing that it reads has changed. An
    interrupted request continues from its finished shards.

    Args:
        request: a request of any stage.
        store: the store that the request reads and writes.
        fresh: run the request again, even if it is done.
        replace: replace a result of another request that has the same name.

    Returns:
        The status of the request's job: done, or partial if some shards failed.

    Raises:
        JobError: the job failed or was cancelled.
        NameTakenError: the name of the result belongs to another request.
    """
    config = settings()
    here = config.model_copy(update={"broker_url": type(config.broker_url)("")})
    status = run_request(Target(store, here), request, fresh=fresh, replace=replace)
    if status.state in WITHOUT_RESULT:
        reasons = [f"{unit}: {error}" for unit, error in status.failed.items()]
        raise JobError("; ".join([f"{request.stage} ended {status.state}", *reasons]))
    return status


def run_request(
    target: Target, request: Request, *, fresh: bool = False, replace: bool = False
) -> JobStatus:
    """Run a request to its end, show its progress, and return the final status of its job."""
    ledger = Ledger(target.store)
    for note in notes(target.store, request):
        console.print("[yellow]note:[/]", escape(printable(note)), highlight=False, soft_wrap=True)
    job = ledger.submit(request, fresh=fresh, replace=replace)
    if ledger.is_open(job):
        _run(target, ledger, request.stage, job)
        write_table(target.store, job)
    return ledger.status(job)


def _run(target: Target, ledger: Ledger, name: str, job: str) -> None:
    with show_progress(name) as reporter:
        if target.queued:
            try:
                _follow(target, ledger, job, reporter)
            except KeyboardInterrupt:
                say(f"{name}: workers go on with {job}; 'htd jobs cancel {job}' stops them")
                raise
            return
        sign(target.store, job)
        prepare(target.config.threads)
        run_job(ledger, load_stage(name), job, reporter=reporter, config=target.config)


def run_or_fail(target: Target, request: Request, *, replace: bool = False) -> JobStatus:
    """Run and report one request of a series; a partial result does not stop the series.

    Raises:
        InputError: the request failed because of its input, so the rest must not run.
        JobError: it failed otherwise, or was cancelled.
    """
    status = run_request(target, request, replace=replace)
    report(status, target.store)
    if status.state in WITHOUT_RESULT:
        kind = InputError if failed_by_input(target.store, status.job) else JobError
        raise kind(f"{request.stage} ended {status.state}; later requests were not run")
    return status


def _follow(target: Target, ledger: Ledger, job: str, reporter: Reporter) -> None:
    """Hand a job to the queue, and show its progress until it has ended."""
    if target.config.broker_url.get_secret_value() == WITHOUT_QUEUE:
        _watch(ledger, job, reporter)
        return
    from shared.queue.redis_state import read_progress
    from shared.queue.worker import Dispatcher

    dispatcher = Dispatcher(target.config)
    dispatcher.start(ledger, job)
    asked = -LISTENER_SECONDS
    while True:
        status = ledger.status(job)
        reporter.phase(job, status.phase, status.phases, status.done, status.total or 1)
        if status.state in ENDED:
            return
        if time.monotonic() - asked >= LISTENER_SECONDS:
            asked = time.monotonic()
            if not dispatcher.listens(status.stage):
                say(no_listener(status.stage))
        for unit, progress in sorted(read_progress(dispatcher.redis, job).items()):
            if progress.done < progress.total:
                reporter.unit(job, unit, progress.done, progress.total, progress.note)
        time.sleep(POLL_SECONDS)


def _watch(ledger: Ledger, job: str, reporter: Reporter) -> None:
    """Show the progress of a job until it has ended, whoever works on it."""
    say(f"{job} waits for processes of 'htd work --stage {ledger.stage(job)}'")
    while True:
        status = ledger.status(job)
        reporter.phase(job, status.phase, status.phases, status.done, status.total or 1)
        if status.state in ENDED:
            return
        time.sleep(WATCH_SECONDS)


def no_listener(stage: str) -> str:
    """Say that a job waits for a worker, and how to start one."""
    return (
        f"{stage}: no worker listens to '{stage}' yet, so the job waits; on a local stack, "
        f"'htd stack up --services {stage}' starts one"
    )
