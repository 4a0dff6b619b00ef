"""`htd jobs`: list, show, cancel and retry jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.table import Table

from heterotissue import remote
from heterotissue.cli.options import BrokerOption, ServerOption, StoreOption, example
from heterotissue.cli.outcome import end, run_and_end
from heterotissue.progress import console
from heterotissue.running import Target, report
from shared.contracts.jobs import JobStatus
from shared.contracts.requests import REQUESTS
from shared.jobs import Ledger

app = typer.Typer(help="List, show, cancel and retry jobs.")


@app.command("list", epilog=example("htd jobs list"))
def jobs_list(store: StoreOption = None, server: ServerOption = None) -> None:
    """List jobs with their state."""
    table = Table("job", "state", "done", "failed", box=None)
    with all_jobs(store, server) as jobs:
        for status in jobs:
            done = f"{status.done}/{status.total}"
            table.add_row(status.job, status.state, done, str(len(status.failed)))
    console.print(table)


@app.command("show", epilog=example("htd jobs show train-0123456789abcdef"))
def jobs_show(job: str, store: StoreOption = None, server: ServerOption = None) -> None:
    """Show a job's state, its result and its failures."""
    if server is None:
        report(Ledger(Target.of(store, "").store).status(job))
    else:
        with remote.connect(server) as client:
            report(client.job(job))


@app.command("cancel", epilog=example("htd jobs cancel train-0123456789abcdef"))
def jobs_cancel(job: str, store: StoreOption = None, server: ServerOption = None) -> None:
    """Cancel a job; its finished shards stay."""
    if server is None:
        ledger = Ledger(Target.of(store, "").store)
        ledger.stage(job)
        ledger.cancel(job)
        report(ledger.status(job))
    else:
        with remote.connect(server) as client:
            report(client.cancel_job(job))


@app.command("retry", epilog=example("htd jobs retry train-0123456789abcdef"))
def jobs_retry(
    job: str, store: StoreOption = None, broker: BrokerOption = None, server: ServerOption = None
) -> None:
    """Run a job's failed and cancelled shards again."""
    if server is None:
        target = Target.of(store, broker)
        ledger = Ledger(target.store)
        kind = REQUESTS[ledger.stage(job)]
        run_and_end(target, kind.model_validate(ledger.request(job)))
    else:
        with remote.connect(server) as client:
            end(remote.retry(client, job))


@contextmanager
def all_jobs(store: str | None, server: str | None) -> Iterator[Iterable[JobStatus]]:
    """Yield the jobs of a gateway if `server` is given, else those of a store."""
    if server is None:
        ledger = Ledger(Target.of(store, "").store)
        yield (status for job in ledger.jobs() if (status := ledger.find(job)) is not None)
    else:
        with remote.connect(server) as client:
            yield client.jobs()
