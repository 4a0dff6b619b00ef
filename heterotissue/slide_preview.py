"""The table of slides that a dry run of `htd ingest` shows."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from shared.contracts.ingest import IngestRequest
from shared.storage import Store


def slide_table(store: Store, request: IngestRequest) -> Table:
    """Look at each slide of a request, and make a table of what was found."""
    from services.ingest.preview import preview_slide

    table = Table(box=None)
    for column in ("slide", "file", "pixels", "µm/px", "labels", "classes", "would be skipped"):
        table.add_column(column, overflow="fold")
    for source in request.slides:
        seen = preview_slide(store, request, source)
        first = request.classes.names[0] if request.classes else ""
        classes = [f"{name} {share:.0%}" for name, share in seen.shares.items() if name != first]
        nothing = "[yellow]none[/]" if seen.labels and request.classes and not seen.fault else ""
        table.add_row(
            seen.slide,
            escape(seen.file),
            f"{seen.size[0]}×{seen.size[1]}" if seen.size[0] else "",
            f"{seen.mpp:.4g} ({seen.mpp_from})" if seen.mpp else "",
            escape(seen.labels) or "[yellow]not found[/]",
            escape(", ".join(classes)) or nothing,
            f"[yellow]{escape(seen.fault)}[/]" if seen.fault else "",
        )
    return table
