"""The end of a command: it prints the outcome of its job and sets the exit code."""

from __future__ import annotations

import typer

from heterotissue.dry_run import dry_run, dry_run_all
from heterotissue.job_report import failed_by_input, report
from heterotissue.running import Target, run_or_fail, run_request
from shared.contracts.base import Request
from shared.jobs import JobStatus
from shared.storage import Store

EXIT_CODES = {"done": 0, "failed": 1, "partial": 3, "cancelled": 1}
WRONG_INPUT = 2
DRY_RUN_CODES = EXIT_CODES | {"failed": WRONG_INPUT}


def run_and_end(
    target: Target, request: Request, *, fresh: bool = False, replace: bool = False
) -> None:
    """Run a request, print its outcome, and exit with an error code unless it is done.

    In a dry run, only print what the request would do, and exit with the code that it would end
    with, as far as that is seen.
    """
    if target.dry_run:
        state = dry_run(target.store, request, target.config, fresh=fresh, replace=replace)
        raise typer.Exit(DRY_RUN_CODES[state])
    end(run_request(target, request, fresh=fresh, replace=replace), target.store)


def run_series(target: Target, requests: list[Request], *, replace: bool = False) -> None:
    """Run and report the requests of a series in order, or print what they would do.

    The exit code is that of a partial job if one of them is partial.
    """
    if target.dry_run:
        states = dry_run_all(target.store, requests, target.config, replace=replace)
        raise typer.Exit(next((code for state in states if (code := DRY_RUN_CODES[state])), 0))
    states = [run_or_fail(target, request, replace=replace).state for request in requests]
    if "partial" in states:
        raise typer.Exit(EXIT_CODES["partial"])


def end(status: JobStatus, store: Store | None = None) -> None:
    """Print the outcome of an ended job, and exit with an error code unless it is done.

    Args:
        status: the final status of the job.
        store: the store that holds the job; None: it is out of reach, on another machine.
    """
    report(status, store)
    state = status.state
    if state == "done" and (status.result or {}).get("left_out"):
        state = "partial"
    if state != "done":
        raise typer.Exit(exit_code(state, status.job, store))


def exit_code(state: str, job: str, store: Store | None) -> int:
    """Return the exit code of a job in some state; a job that failed by its input has its own."""
    if state == "failed" and store is not None and failed_by_input(store, job):
        return WRONG_INPUT
    return EXIT_CODES[state]
