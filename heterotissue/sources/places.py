"""Whether a path that a table states is that of a file which lies elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from heterotissue.sources.annotations import stem_of
from heterotissue.sources.files import SLIDES
from heterotissue.sources.records import composed


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
        paths = {(*folders, _name(path)) for path in stated if (folders := _folders(path))}
        self._rows = Counter(path[-1] for path in paths)
        self._folders = {path[-2] for path in paths}
        self._one_folder = len(paths) > 1 and len({path[:-1] for path in paths}) == 1
        self._files = Counter(_name(path) for path in files)
        self._exact = Counter(path.name for path in files)

    def leaves_open(self, given: Path, path: Path) -> bool:
        """Say whether a row states a bare name that several files have."""
        return not _folders(given) and self._exact[path.name] > 1

    def in_common(self, given: Path, path: Path, below: Path) -> int | None:
        """Count the folders that a stated path shares with a file, from the file upwards.

        A path with folders fits a file of its name if these are the file's, as far as both go
        below the folder that was searched. If the file lies in that folder itself, this may have
        been renamed. Where all rows state one folder, this tells no slides apart, so files may lie
        in any. In both cases nothing else may have the file's name, nor any row its folder's.

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
        own = set(_folders(path.absolute())[-len(below.parts) :])
        renamed = (
            shared == 0
            and (len(below.parts) == 1 or self._one_folder)
            and self._rows[_name(given)] == 1
            and self._files[_name(path)] == 1
            and not own & self._folders - {folders[-1]}
            and not any(_differ_in_numbers(one, other) for one in own for other in folders)
        )
        return 0 if renamed else None


def _folders(path: Path) -> tuple[str, ...]:
    """Return the names of a path's folders, in small letters: Windows ignores case."""
    return tuple(_folded(part) for part in path.parts[1 if path.anchor else 0 : -1])


def _shared(given: Path, path: Path) -> int:
    pairs = list(zip(reversed(_folders(given)), reversed(_folders(path)), strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _name(path: Path) -> str:
    known = path.suffix.lower() in SLIDES
    return _folded(stem_of(path) if known else path.name)


def _folded(name: str) -> str:
    return composed(name).casefold()


def _differ_in_numbers(one: str, other: str) -> bool:
    """Say whether two names differ in numbers alone, as P001 and P002: those are of two things."""
    return one != other and re.sub(r"\d+", "0", one) == re.sub(r"\d+", "0", other)
