"""Tables of a cohort: its slides before an ingest, and its splits before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from rich.markup import escape
from rich.table import Table

from heterotissue.job_report import cause_lines
from heterotissue.progress import console, print_table, say, show_progress
from shared.contracts.base import Split
from shared.contracts.ingest import CohortRecord, IngestRequest, cohort_key
from shared.contracts.regions import RegionSet, RegionSetSlide, class_count, region_set_key
from shared.errors import printable
from shared.storage import ObjectNotFoundError, Store

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def preview_cohort(store: Store, request: IngestRequest) -> int:
    """Look at each slide of a request; print them, why slides would be skipped, and the splits.

    Returns:
        The number of slides that would be skipped.
    """
    from services.ingest.preview import preview_slide, preview_splits

    with show_progress("looking at slides") as reporter:
        total, seen = len(request.slides), []
        for number, source in enumerate(request.slides, 1):
            seen.append(preview_slide(store, request, source))
            reporter.phase("", 0, 1, number, total)
    faults = {each.slide: each.fault for each in seen if each.fault}
    if seen:
        table = Table("slide", "pixels", "µm/px", "tissue", "stain", "labels", "classes", box=None)
        for each in seen:
            classes = [f"{name} {share:.0%}" for name, share in each.shares.items()]
            table.add_row(
                escape(each.slide),
                f"{each.size[0]}×{each.size[1]}" if each.size[0] else "",
                f"{shown_mpp(each.mpp)} ({each.mpp_from})" if each.mpp else "",
                "" if each.tissue is None else f"{each.tissue:.0%}",
                each.stain,
                escape(printable(each.labels)) or "[yellow]not found[/]",
                escape(", ".join(classes)),
            )
        print_table(table, console)
    unseen = [each.slide for each in seen if each.tissue is None and not each.fault]
    if unseen:
        say(
            f"  {len(unseen)} large slides without a pyramid are only opened; the ingest looks at "
            "their tissue, stain and labels, and may skip them"
        )
    if request.tiles:
        say("  tiles and masks are read only by the ingest itself, which may leave some out")
    if request.classes is None:
        say("  annotations are read only with --classes")
    if faults:
        say(f"  {len(faults)} of {len(seen)} slides would be skipped:")
        for line in cause_lines(faults):
            say(f"  {line}")
    if len(faults) < len(seen) or request.tiles:
        splits, members = preview_splits(store, request, faults)
        parts: dict[Split, dict[str, str | None]] = {split: {} for split in SPLITS}
        for name, split in splits.items():
            parts[split][name] = members[name].patient
        print_table(_splits_table(parts), console)
        say("  the splits may still move a little, so that each class is in train and in test")
    if copied := copied_bytes(store, request):
        say(f"  files copied into the store: {copied / 1e6:,.1f} MB (--in-place copies none)")
    return len(faults)


def shown_mpp(mpp: tuple[float, float]) -> str:
    """Write µm per pixel along x and y, once if they are equal."""
    return " × ".join(dict.fromkeys(f"{each:.4g}" for each in mpp))


def copied_bytes(store: Store, request: IngestRequest) -> int:
    """Return the bytes of slides and annotations that are in the store, or would be copied."""
    sources = (source for item in request.slides for source in (item.source, item.labels))
    folders = {
        source.rpartition("/")[0] + "/"
        for source in sources
        if source and not PurePosixPath(source).is_absolute()
    }
    return sum(store.size(key) for folder in folders for key in store.list(folder))


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
    table = _splits_table(slides)
    table.add_row("regions", *(f"{sum(p.regions for p in parts[split])}" for split in SPLITS))
    for item in regions.classes.items[regions.classes.first :] if regions else ():
        counts = (class_count(parts[split], item.index) for split in SPLITS)
        table.add_row(f"  with {escape(item.name)}", *map(str, counts))
    print_table(table, console)
    for caution in dict.fromkeys(text for item in known for text in item.cautions):
        say(f"caution: {caution}")


def _splits_table(slides: Mapping[Split, Mapping[str, str | None]]) -> Table:
    """Make a table of the splits with their patients and slides.

    Args:
        slides: split → its slides with their patients, where known.
    """
    table = Table("", *SPLITS, box=None, pad_edge=False)
    table.add_row("patients", *(_patients(slides[split]) for split in SPLITS))
    table.add_row("slides", *(f"{len(slides[split])}" for split in SPLITS))
    return table


def _patients(slides: Mapping[str, str | None]) -> str:
    known = {patient for patient in slides.values() if patient}
    unknown = sum(patient is None for patient in slides.values())
    return f"{len(known)}" + (f" (and {unknown} slides of unknown ones)" if unknown else "")
