"""What the commands that make a cohort tell: files left out, splits, and their exit code."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from heterotissue.cli.outcome import DRY_RUN_CODES, exit_code
from heterotissue.cohort_tables import show_splits
from heterotissue.dry_run import dry_run
from heterotissue.job_report import causes, report, write_table
from heterotissue.progress import say
from heterotissue.running import Target, run_request
from heterotissue.sources import Refusal, some
from shared.contracts.ingest import IngestRequest


def tell(notes: Sequence[str], refused: Sequence[Refusal]) -> None:
    """Print remarks, and each reason why files are left out, once."""
    for note in notes:
        say(f"note: {note}")
    for reason, paths in causes({item.path: item.reason for item in refused}):
        if len(paths) == 1:
            say(f"left out: {paths[0]}: {reason}")
        else:
            say(f"left out: {len(paths)} files ({some(paths, 3)}): {reason}")


def end_cohort(
    target: Target,
    request: IngestRequest,
    refused: Sequence[Refusal],
    *,
    fresh: bool,
    replace: bool,
) -> None:
    """Run an ingest request, print its outcome and its splits, and exit with its code.

    The exit code is that of a partial job also if files were left out before the job. In a dry
    run, only print what the request would do, and exit with the code that it would end with.
    """
    if target.dry_run:
        state = dry_run(target.store, request, target.config, fresh=fresh, replace=replace)
        state = "partial" if state == "done" and refused else state
        raise typer.Exit(DRY_RUN_CODES[state])
    status = run_request(target, request, fresh=fresh, replace=replace)
    left_out = (status.result or {}).pop("left_out", {})
    if refused:
        skipped = {str(item.path): item.reason for item in refused}
        write_table(target.store, status.job, skipped)
    report(status, target.store)
    tell([], [Refusal(path, reason) for path, reason in left_out.items()])
    if status.state in {"done", "partial"}:
        show_splits(target.store, request.cohort)
    if refused:
        files = "1 file was" if len(refused) == 1 else f"{len(refused)} files were"
        say(f"{files} left out, as said above")
    state = "partial" if status.state == "done" and (refused or left_out) else status.state
    if state != "done":
        raise typer.Exit(exit_code(state, status.job, target.store))
