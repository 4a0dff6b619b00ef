"""What the cells of a table of slides mean: paths, sizes of pixels, splits."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import Any, get_args
from urllib.parse import unquote, urlparse

from heterotissue.sources.records import shown
from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Split
from shared.contracts.ingest import GIVEN_MPP
from shared.errors import InputError, quoted

SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "tune": "val",
    "test": "test", "testing": "test", "te": "test", "holdout": "test",
}  # fmt: skip


def path_of(text: str) -> Path:
    """Turn a path of a table into one of this machine: file: addresses, Windows' signs.

    Raises:
        InputError: it is no path.
    """
    try:
        if text.lower().startswith("file:"):
            text = unquote(urlparse(text).path)
        if "\\" in text:
            text = PureWindowsPath(text).as_posix()
        return Path(text).expanduser()
    except (ValueError, RuntimeError) as error:  # an address like file://[, an unknown ~user
        raise InputError(f"{shown(text)} is no path: {error}") from error


def is_file(path: Path) -> bool:
    """Say whether a file is there; False for what can be no path."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def square_mpp(mpp: float | None, mpp_y: float | None) -> float | None:
    """Return the size of a pixel, µm. Raises `InputError` if its height is another."""
    if mpp_y is not None and (mpp is None or not math.isclose(mpp, mpp_y, rel_tol=0.01)):
        wide = "none" if mpp is None else f"{mpp:g}"
        raise InputError(
            f"states pixels of {wide} × {mpp_y:g} µm: a table gives one size, of square pixels. "
            "Leave both out where the file states them"
        )
    return mpp


def mpp_of(text: str | None) -> float | None:
    """Return a size of a pixel, µm. Raises `InputError` if it is none."""
    if text is None:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = 0.0
    least, most = GIVEN_MPP
    if not least <= value <= most:
        raise InputError(
            f"mpp {quoted(text)} is no size of a slide's pixel, which is {least:g} to {most:g} µm"
        )
    return value


def labels_of(text: str | None, place: Path) -> Path | None:
    """Return the path of an annotation. Raises `InputError` if no file is there.

    Args:
        text: the cell.
        place: folder of the table.
    """
    if text is None:
        return None
    path = place / path_of(text)
    if not is_file(path):
        raise InputError(f"its annotation {text} is not there")
    return path


def label_formats() -> dict[str, LabelFormat]:
    """Return the names of the formats of annotations."""
    return {name: name for name in get_args(LabelFormat)}


def one_of(what: str, text: str | None, known: dict[str, Any]) -> Any:
    """Return the known value that a cell names. Raises `InputError` if it names none.

    Args:
        what: name of the value, for the error.
        text: the cell.
        known: what cells say, in small letters → value.
    """
    if text is None:
        return None
    if (value := known.get(text.lower())) is None:
        raise InputError(f"{what} {quoted(text)} is not one of {', '.join(known)}")
    return value
