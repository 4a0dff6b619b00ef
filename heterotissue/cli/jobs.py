"""`htd jobs`: list, show, cancel and retry jobs."""

from __future__ import annotations

import typer

from heterotissue import remote
from heterotissue.cli.options import BrokerOption, DryRunOption, ServerOption, StoreOption, example
from heterotissue.cli.outcome import end, run_and_end
from heterotissue.job_list import JobLine, job_table, stored_jobs
from heterotissue.job_report import report
from heterotissue.progress import print_table
from heterotissue.running import Target
from shared.contracts.requests import REQUESTS
from shared.errors import InputError
from shared.jobs import Ledger

app = typer.Typer(help="List, show, cancel and retry jobs.")


@app.command("list", epilog=example("htd jobs list"))
def jobs_list(store: StoreOption = None, server: ServerOption = None) -> None:
    """List jobs, the oldest first: what they make, their state, shards and times.

    A job is interrupted if it is open and nobody works on it: run its command again, or
    'htd jobs retry'.
    """
    if server is None:
        print_table(job_table(stored_jobs(Target.of(store, "").store)))
    else:
        with remote.connect(server) as client:
            print_table(job_table(JobLine(status, status.state) for status in client.jobs()))


@app.command("show", epilog=example("htd jobs show train-0123456789abcdef"))
def jobs_show(job: str, store: StoreOption = None, server: ServerOption = None) -> None:
    """Show a job's state, its result and its failures."""
    if server is None:
        opened = Target.of(store, "").store
        report(Ledger(opened).status(job), opened)
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
    job: str,
    store: StoreOption = None,
    broker: BrokerOption = None,
    server: ServerOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Run a job's failed and cancelled shards again."""
    if server is not None and dry_run:
        raise InputError("--server excludes --dry-run")
    if server is None:
        target = Target.of(store, broker, dry_run)
        ledger = Ledger(target.store)
        kind = REQUESTS[ledger.stage(job)]
        run_and_end(target, kind.model_validate(ledger.request(job)))
    else:
        with remote.connect(server) as client:
            end(remote.retry(client, job))
