"""The end of a command: it prints the outcome of its job and sets the exit code."""

from __future__ import annotations

import typer

from heterotissue.running import Target, report, run_request
from shared.contracts.base import Request
from shared.jobs import JobStatus

EXIT_CODES = {"done": 0, "failed": 1, "partial": 3, "cancelled": 1}


def run_and_end(
    target: Target, request: Request, *, fresh: bool = False, replace: bool = False
) -> None:
    """Run a request, print its outcome, and exit with an error code unless it is done."""
    end(run_request(target, request, fresh=fresh, replace=replace))


def end(status: JobStatus) -> None:
    """Print the outcome of an ended job, and exit with an error code unless it is done."""
    report(status)
    if status.state != "done":
        raise typer.Exit(EXIT_CODES[status.state])
