"""Files that stand for slides, for tests of what is found on disk and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.keeping import Sources
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
