"""What a dry run of `htd ingest` shows of the slides."""

from __future__ import annotations

from pathlib import PurePosixPath

from rich.markup import escape
from rich.table import Table

from heterotissue.job_report import cause_lines
from heterotissue.progress import console, print_table, say
from shared.contracts.ingest import IngestRequest
from shared.storage import Store


def show_slides(store: Store, request: IngestRequest) -> None:
    """Look at each slide of a request; print a table, and why slides would be skipped."""
    from services.ingest.preview import preview_slide

    table = Table("slide", "pixels", "µm/px", "labels", "classes", box=None)
    faults: dict[str, str] = {}
    for source in request.slides:
        seen = preview_slide(store, request, source)
        classes = [f"{name} {share:.0%}" for name, share in seen.shares.items()]
        if seen.fault:
            faults[seen.slide] = seen.fault
        table.add_row(
            escape(seen.slide),
            f"{seen.size[0]}×{seen.size[1]}" if seen.size[0] else "",
            f"{seen.mpp:.4g} ({seen.mpp_from})" if seen.mpp else "",
            escape(seen.labels) or "[yellow]not found[/]",
            escape(", ".join(classes)),
        )
    print_table(table, console)
    if request.classes is None:
        say("  annotations are read only with --classes")
    if faults:
        say(f"  {len(faults)} of {len(request.slides)} slides would be skipped:")
        for line in cause_lines(faults):
            say(f"  {line}")
    if copied := copied_bytes(store, request):
        say(f"  files copied into the store: {copied / 1e6:,.1f} MB (--in-place copies none)")


def copied_bytes(store: Store, request: IngestRequest) -> int:
    """Return the bytes of slides and annotations that are in the store, or would be copied."""
    sources = (source for item in request.slides for source in (item.source, item.labels))
    folders = {
        source.rpartition("/")[0] + "/"
        for source in sources
        if source and not PurePosixPath(source).is_absolute()
    }
    return sum(store.size(key) for folder in folders for key in store.list(folder))
