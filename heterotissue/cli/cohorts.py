"""What the commands that make a cohort tell: files left out, splits, and their exit code."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.table import Table

from heterotissue.cli.outcome import exit_code
from heterotissue.dry_run import dry_run
from heterotissue.job_report import causes, report, write_table
from heterotissue.progress import console, print_table, say
from heterotissue.running import Target, run_request
from heterotissue.sources import Refusal, some
from shared.contracts.base import Split
from shared.contracts.ingest import CohortRecord, IngestRequest, cohort_key
from shared.contracts.regions import RegionSet, RegionSetSlide, class_count, region_set_key
from shared.storage import ObjectNotFoundError, Store

SPLITS: tuple[Split, ...] = ("train", "val", "test")


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
    run, only print what the request would do.
    """
    if target.dry_run:
        dry_run(target.store, request, target.config, fresh=fresh, replace=replace)
        return
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
        say(f"{len(refused)} files were left out, as said above")
    state = "partial" if status.state == "done" and (refused or left_out) else status.state
    if state != "done":
        raise typer.Exit(exit_code(state, status.job, target.store))


def show_splits(store: Store, cohort: str) -> None:
    """Print the patients, slides and regions of each split, and the regions of each class."""
    try:
        record = store.get_model(cohort_key(cohort), CohortRecord)
    except ObjectNotFoundError:
        record = None
    try:
        regions = store.get_model(region_set_key(cohort), RegionSet)
    except ObjectNotFoundError:
        regions = None
    known = [item for item in (record, regions) if item is not None and item.cohort == cohort]
    slides: dict[Split, dict[str, str | None]] = {split: {} for split in SPLITS}
    parts: dict[Split, list[RegionSetSlide]] = {split: [] for split in SPLITS}
    if record is not None:
        for slide, split in record.splits.items():
            slides[split][slide] = record.patients.get(slide)
    for part in regions.slides if regions else ():
        slides[part.split][part.slide] = part.patient
        parts[part.split].append(part)
    table = Table("", *SPLITS, box=None, pad_edge=False)
    table.add_row("patients", *(_patients(slides[split]) for split in SPLITS))
    table.add_row("slides", *(f"{len(slides[split])}" for split in SPLITS))
    table.add_row("regions", *(f"{sum(p.regions for p in parts[split])}" for split in SPLITS))
    for item in regions.classes.items[regions.classes.first :] if regions else ():
        counts = (class_count(parts[split], item.index) for split in SPLITS)
        table.add_row(f"  with {item.name}", *map(str, counts))
    print_table(table, console)
    for caution in dict.fromkeys(text for item in known for text in item.cautions):
        say(f"caution: {caution}")


def _patients(slides: dict[str, str | None]) -> str:
    known = {patient for patient in slides.values() if patient}
    unknown = sum(patient is None for patient in slides.values())
    return f"{len(known)}" + (f" (and {unknown} slides of unknown ones)" if unknown else "")
