"""Files that stand for slides, for tests of what is found on disk and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heterotissue.sources import Found, find_slides, slide_sources
from heterotissue.sources.keeping import Sources
from heterotissue.sources.listed import find_by_table
from shared.storage import DirectoryStore


def slide(path: Path, content: str = "") -> Path:
    """Write a file that stands for a slide: only its name and content count here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or str(path)).encode())
    return path


def sources(tmp_path: Path, *paths: Path, **options: Any) -> Sources:
    """Find slides in paths, and keep them in the store `store` below the folder."""
    settings: dict[str, Any] = {"use_labels": False, "keep_source": True} | options
    return slide_sources(DirectoryStore(tmp_path / "store"), find_slides(list(paths)), **settings)


def listed(tmp_path: Path, text: str, *files: str, name: str = "t/t.csv") -> Found:
    """Find what a table lists of files in the folder `in`, which are written first."""
    for file in files:
        slide(tmp_path / "in" / file)
    table = tmp_path / name
    table.parent.mkdir(exist_ok=True)
    table.write_text(text)
    return find_by_table(table, [tmp_path / "in"], None)


def taken(found: Found) -> list[str]:
    """Return the paths of the slides that were found, below the folder that was searched."""
    return [entry.below.as_posix() for entry in found.slides]
