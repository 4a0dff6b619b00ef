"""What a job came to: its figures, a row per slide, failures by cause, and where results lie."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.markup import escape
from rich.table import Table

from heterotissue.progress import console, print_table, say
from shared.contracts.cluster import cluster_key
from shared.contracts.embed import feature_record_key
from shared.contracts.evaluate import report_key
from shared.contracts.field import field_key
from shared.contracts.image import image_key
from shared.contracts.ingest import cohort_key
from shared.contracts.jobs import JobStatus, job_key
from shared.contracts.models import ModelRef
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import dataset_key
from shared.jobs import Ledger, Shard, UnreadableRecordError
from shared.jobs.markers import markers_of
from shared.storage import Store

SHOWN_SLIDES = 20
"""Greatest number of slides whose table is printed; `report.csv` has all of them."""

SHOWN_ITEMS = 8
"""Greatest number of names that a line lists."""

COLORS = {"done": "green", "partial": "yellow"}
NAME_FIELDS = {
    "ingest": ("cohort",),
    "embed": ("cohort", "encoder"),
    "cluster": ("run",),
    "train": ("model", "version"),
    "deploy": ("model", "version"),
    "synthesize": ("dataset",),
    "image": ("image",),
    "field": ("field",),
    "evaluate": ("report",),
}
"""Stage → fields of its request that name what the job makes."""

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A sha256, which is no figure for people."""

Row = dict[str, Any]
"""A slide in the table: slide, state (done or skipped), why, seconds, and its figures."""


def name_of(stage: str, request: Mapping[str, Any]) -> str:
    """Return the name of what a job makes, such as its cohort, by its request as plain JSON."""
    parts = (str(request.get(field, "")) for field in NAME_FIELDS.get(stage, ()))
    return "/".join(part for part in parts if part)


def result_key(stage: str, request: Mapping[str, Any]) -> str | None:
    """Return the key, or the prefix with its slash, at which a job's result lies."""
    own = request.get
    match stage:
        case "ingest":
            tiles = own("tiles") and not own("slides")
            return (region_set_key if tiles else cohort_key)(own("cohort", ""))
        case "embed":
            return feature_record_key(own("encoder", ""), own("cohort", ""))
        case "cluster":
            return cluster_key(own("run", ""), "")
        case "train":
            return ModelRef(own("model", ""), own("version", "1")).prefix
        case "synthesize":
            return dataset_key(own("dataset", ""), "")
        case "image":
            return image_key(own("image", ""))
        case "field":
            return field_key(own("field", ""), "slide.tiff")
        case "evaluate":
            return report_key(own("report", ""), "report.html")
    return None


def figures(result: Mapping[str, Any]) -> str:
    """Write the single values of a result in one line, without empty ones."""
    texts = ((name, short(value)) for name, value in result.items() if not _is_wide(value))
    return ", ".join(f"{name} {text}" for name, text in texts if text)


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each list or table of a result, without empty ones."""
    for name, value in result.items():
        if _is_wide(value) and value:
            yield f"{name}: {short(value)}"


def _is_wide(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def short(value: Any) -> str:
    """Write a value for people: few digits, and the first of many items."""
    if isinstance(value, Mapping):
        items = [f"{name} {text}" for name, each in value.items() if (text := short(each))]
        return _first(items, SHOWN_ITEMS)
    if isinstance(value, list | tuple):
        return _first([short(each) for each in value], SHOWN_ITEMS)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def _first(items: list[str], count: int) -> str:
    more = len(items) - count
    return ", ".join(items[:count]) + (f" and {more} more" if more > 0 else "")


def causes(failed: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Group failures by their cause: (its text, the names of all of them).

    Errors have the same cause if they differ only in names of files, in numbers, and in the name
    of what failed. In the text of several, numbers that differ are given as a span, such as
    3–17, and names that differ as the first one and '…'. Numbers at a quote or bracket, such as
    in '7=tumor' and [7], are to be taken as they are: errors that differ in them stay apart.
    """
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for name, error in failed.items():
        parts = _variable(name).split(error)
        groups.setdefault("\0".join(parts[::2]), []).append((name, parts))
    return [
        ("".join(map(_common, zip(*(parts for _, parts in group), strict=True))),
         [name for name, _ in group])
        for group in groups.values()
    ]  # fmt: skip


def _variable(name: str) -> re.Pattern[str]:
    """Return the pattern of what may differ between errors of one cause, as its only group.

    Args:
        name: name of what failed.
    """
    own = "|".join(re.escape(part) for part in (name, name.partition("-")[2]) if part)
    number = r"(?<!['\[\d.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\d'\]])"
    return re.compile(
        rf"((?<![\w.-])(?:{own})(?:\.[A-Za-z]\w{{1,6}})*(?![\w-])|\S*\.[A-Za-z]\w{{1,6}}\b|{number})"
    )


def _common(texts: Sequence[str]) -> str:
    """Return what stands for texts that may differ: their span, or the first one and '…'."""
    different = set(texts)
    if len(different) == 1:
        return texts[0]
    try:
        ordered = sorted(different, key=lambda text: float(text.replace(",", "")))
    except ValueError:
        return f"{texts[0]}, …"
    return f"{ordered[0]}–{ordered[-1]}"


def cause_lines(failed: Mapping[str, str]) -> Iterator[str]:
    """Yield lines that say each cause once, with the number and names of what it concerns."""
    for error, names in causes(failed):
        if len(names) == 1:
            yield f"  {names[0]}: {error}"
            continue
        yield f"  {len(names)} ×  {error}"
        yield f"      {_first(names, SHOWN_ITEMS)}"


def failed_by_input(store: Store, job: str) -> bool:
    """Say whether all units of a job that were given up have wrong input."""
    try:
        return Ledger(store).snapshot(job).wrong_input
    except UnreadableRecordError:
        return False


WITH_SLIDES = frozenset({"ingest", "embed", "cluster"})
"""Stages whose shards are about slides."""


def slide_rows(store: Store, job: str) -> list[Row]:
    """Return a row for each slide of a job; nothing if the job is not about slides.

    A slide is skipped if one of its shards was given up.
    """
    ledger = Ledger(store)
    snapshot = ledger.snapshot(job)
    stage = snapshot.record.stage
    rows: dict[str, Row] = {}
    plan, failed = snapshot.plan, snapshot.failed
    for segment in plan.every if plan and stage in WITH_SLIDES else ():
        markers = markers_of(snapshot, segment)
        for shard in plan.shards(segment) if plan else ():
            slide = _slide_of(stage, shard)
            if slide is None:
                continue
            row = rows.setdefault(
                slide, {"slide": slide, "state": "done", "why": "", "seconds": 0.0}
            )
            marker = markers.get(shard.id)
            if shard.id in failed:
                # A shard that joins the parts of a slide fails after one of them did.
                row |= {"state": "skipped", "why": row["why"] or failed[shard.id]}
            elif marker is None:
                row |= {"state": "open"} if row["state"] == "done" else {}
            else:
                row["seconds"] = round(row["seconds"] + marker.seconds, 2)
                row |= {name: x for name, x in marker.result.items() if _is_figure(x)}
    return list(rows.values())


def _slide_of(stage: str, shard: Shard) -> str | None:
    if stage == "ingest":
        return shard.id
    if stage == "embed":
        return None if shard.id == "fit-encoder" else str(shard.args.get("slide", shard.id))
    slide = shard.args.get("slide")
    return str(slide) if slide else None


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float | str) and not DIGEST.fullmatch(str(value))


def table_key(job: str) -> str:
    """Return the key of the table of a job's slides."""
    return job_key(job, "report.csv")


def write_table(store: Store, job: str, refused: Mapping[str, str] | None = None) -> None:
    """Write the table of a job's slides into the store, if the job is about slides.

    Args:
        store: the store that holds the job.
        job: id of the job.
        refused: file → why it was left out before the job.
    """
    rows = slide_rows(store, job)
    rows += [
        {"slide": file, "state": "skipped", "why": why} for file, why in (refused or {}).items()
    ]
    if not rows:
        return
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    store.put(table_key(job), text.getvalue().encode())


def report(status: JobStatus, store: Store | None = None) -> None:
    """Print what a job came to: its state, figures and failures.

    With its store, the slides and the places of the results follow.
    """
    color = COLORS.get(status.state, "red")
    head = f"{status.stage}: [{color}]{status.state}[/] {escape(figures(status.result or {}))}"
    console.print(head, highlight=False, soft_wrap=True)
    for line in notes(status.result or {}):
        say(f"  {line}")
    rows: list[Row] = []
    found: list[str] = []
    with suppress(UnreadableRecordError):  # it is among the failures
        if store is not None:
            rows, found = slide_rows(store, status.job), list(places(store, status))
    _show_slides(rows)
    for line in (*cause_lines(status.failed), *(f"  {place}" for place in found)):
        say(line)


def places(store: Store, status: JobStatus) -> Iterator[str]:
    """Yield a line for each place in the store where a person looks next."""
    key = result_key(status.stage, Ledger(store).request(status.job))
    if key and status.state in {"done", "partial"}:
        yield f"result: {store.url.rstrip('/')}/{key}"
    if store.exists(table_key(status.job)):
        yield f"slides: {store.url.rstrip('/')}/{table_key(status.job)}"


def _show_slides(rows: list[Row]) -> None:
    if len(rows) > SHOWN_SLIDES:
        states = Counter(row["state"] for row in rows)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        console.print(f"  {len(rows)} slides: {counts}", highlight=False)
        return
    if not rows:
        return
    columns = [name for name in dict.fromkeys(n for row in rows for n in row) if name != "why"]
    table = Table(*columns, box=None)
    for row in rows:
        color = {"done": "green", "skipped": "yellow"}.get(row["state"], "dim")
        cells = [escape(short(row.get(name))) for name in columns]
        cells[1] = f"[{color}]{cells[1]}[/]"
        table.add_row(*cells)
    print_table(table, console)
