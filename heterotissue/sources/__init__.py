"""Prepare slides, tiles and annotations on disk for an ingest request."""

from __future__ import annotations

from pathlib import Path

from heterotissue.sources.files import SLIDES, Finder
from heterotissue.sources.keeping import Sources, slide_sources
from heterotissue.sources.listed import find_by_table
from heterotissue.sources.projects import PROJECT
from heterotissue.sources.records import Found, Refusal, SlideEntry, some
from heterotissue.sources.tables import TABLES
from heterotissue.sources.tiles import TileTable, tile_table
from shared.errors import InputError

__all__ = [
    "Found",
    "Refusal",
    "SlideEntry",
    "Sources",
    "TileTable",
    "find_slides",
    "slide_sources",
    "some",
    "tile_table",
]


def find_slides(
    paths: list[Path],
    *,
    table: Path | None = None,
    labels: Path | None = None,
    leave_out: Path | None = None,
) -> Found:
    """Find slides: files, folders with all folders below them, and tables of slides.

    Files that cannot be slides are refused, or skipped with a note; the others go on.

    Args:
        paths: slides, folders of slides, CSV tables, or projects of QuPath.
        table: a CSV table or a QuPath project; of the slides in `paths`, only those that it
            lists are taken.
        labels: folder of annotations, where those that a table names may lie.
        leave_out: folder that is not searched: that of the store.

    Raises:
        InputError: no slide was found, or a table cannot be read.
    """
    tables = [path for path in paths if path.suffix.lower() in {*TABLES, PROJECT}]
    tables = [path for path in tables if not path.is_dir()] + ([table] if table else [])
    others = [path for path in paths if path not in tables]
    if tables:
        parts = [find_by_table(item, others, leave_out, labels) for item in tables]
        found = Found(
            [entry for part in parts for entry in part.slides],
            [item for part in parts for item in part.refused],
            [note for part in parts for note in part.notes],
        )
    else:
        finder = Finder(leave_out)
        for path in others:
            finder.add(path)
        found = finder.finish()
    if not found.slides:
        reasons = [f"{item.path} {item.reason}" for item in found.refused] + found.notes
        if reasons:
            raise InputError(f"no slide was found: {some(reasons, 20)}")
        raise InputError(
            f"no slide in {some(map(str, paths))}, nor in the folders below: looked for "
            f"{', '.join(sorted(SLIDES))}. Give the slides, or their folder"
        )
    return found
