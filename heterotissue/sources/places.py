"""Whether a path that a table states is that of a file which lies elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from heterotissue.sources.annotations import stem_of
from heterotissue.sources.files import SLIDES


class Places:
    """What the paths of a table and the files on disk tell of each other.

    Where files were moved, a table's paths lead nowhere, but the folders that files lie in still
    tell them apart: many labs give the slides of all patients the same names.

    Args:
        stated: paths that the table states; a bare name is one without folders.
        files: all files that were found.
    """

    def __init__(self, stated: Iterable[Path], files: Iterable[Path]) -> None:
        files = list(files)
        paths = {path for path in stated if _folders(path)}
        self._rows = Counter(_name(path) for path in paths)
        self._folders = {path.parent.name for path in paths}
        self._files = Counter(_name(path) for path in files)
        self._exact = Counter(path.name for path in files)

    def leaves_open(self, given: Path, path: Path) -> bool:
        """Say whether a row states a bare name that several files have."""
        return not _folders(given) and self._exact[path.name] > 1

    def in_common(self, given: Path, path: Path, below: Path) -> int | None:
        """Count the folders that a stated path shares with a file, from the file upwards.

        A path with folders fits a file of its name if these are the file's, as far as both go
        below the folder that was searched. If the file lies in that folder itself, this may have
        been renamed: then nothing else may have the file's name, nor any row the folder's.

        Args:
            given: the path of a row.
            path: the file.
            below: its path below the folder that was searched.

        Returns:
            None if the path is that of another file.
        """
        folders = _folders(given)
        shared = max(_shared(given, path.absolute()), _shared(given, path.resolve()))
        if shared >= min(len(folders), max(1, len(below.parts) - 1)):
            return shared
        own = path.absolute().parent.name
        renamed = (
            len(below.parts) == 1
            and self._rows[_name(given)] == 1
            and self._files[_name(path)] == 1
            and own not in self._folders
            and _without_numbers(own) != _without_numbers(given.parent.name)
        )
        return 0 if renamed else None


def _folders(path: Path) -> tuple[str, ...]:
    return path.parts[1 if path.anchor else 0 : -1]


def _shared(given: Path, path: Path) -> int:
    pairs = list(zip(reversed(_folders(given)), reversed(_folders(path)), strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _name(path: Path) -> str:
    known = path.suffix.lower() in SLIDES
    return (stem_of(path) if known else path.name).casefold()


def _without_numbers(folder: str) -> str:
    """Folders whose names differ in numbers alone, as P001 and P002, are those of two things."""
    return re.sub(r"\d+", "0", folder).casefold()
