"""What the cells of a table of slides mean: paths, sizes of pixels, splits."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, get_args
from urllib.parse import unquote, urlparse

from heterotissue.sources.records import composed, shown, some
from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Split
from shared.contracts.ingest import GIVEN_MPP
from shared.errors import InputError, quoted
from shared.imaging.zarr_slide import is_zarr

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


def is_there(path: Path) -> bool:
    """Say whether a slide is there: a file, or the folder of an OME-Zarr slide."""
    return is_file(path) or is_zarr(path)


def as_on_disk(path: Path) -> Path:
    """Return a path with the name that its file has, if that is in another Unicode form."""
    if path.name.isascii() or is_there(path):
        return path
    names = _listed(path.parent).get(_stem(path), [])
    same = [name for name in names if composed(name) == composed(path.name)]
    return path.with_name(same[0]) if len(same) == 1 else path


def square_mpp(mpp: float | None, mpp_y: float | None) -> float | None:
    """Return the size of a pixel, µm. Raises `InputError` if its height is another."""
    if mpp_y is not None and (mpp is None or not math.isclose(mpp, mpp_y, rel_tol=0.01)):
        wide = "none" if mpp is None else f"{mpp:g}"
        raise InputError(
            f"states pixels of {wide} × {mpp_y:g} µm: a table gives one size, of square pixels. "
            "Leave both out where the file states them"
        )
    return mpp


MICRONS = re.compile(r"(μm|um|microns?|micromet(er|re)s?)?( ?(/|per) ?(px|pix|pixels?))?")
"""Units in which sizes of pixels may be written, in small letters; none means µm."""


def mpp_of(text: str | None) -> float | None:
    """Return a size of a pixel, µm. Raises `InputError` if it is none, or in another unit."""
    if text is None:
        return None
    number = re.match(r"[-+]?[\d.,]+(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE)
    # NFKC: the micro sign (U+00B5) and the Greek mu (U+03BC) are one.
    unit = unicodedata.normalize("NFKC", text[number.end() if number else 0 :]).strip()
    if number and not MICRONS.fullmatch(unit.casefold()):
        raise InputError(
            f"mpp {quoted(text)} is in {quoted(unit)}, not in µm per pixel: convert it to µm"
        )
    try:
        value = float(number[0].replace(",", ".")) if number else 0.0
    except ValueError:
        value = 0.0
    least, most = GIVEN_MPP
    if not least <= value <= most:
        raise InputError(
            f"mpp {quoted(text)} is no size of a slide's pixel, which is {least:g} to {most:g} µm"
        )
    return value


def labels_of(text: str | None, places: Iterable[Path]) -> Path | None:
    """Return the path of an annotation. Raises `InputError` if no file is there.

    Args:
        text: the cell.
        places: folders that the path may be relative to: that of the table, that of annotations.
    """
    if text is None:
        return None
    paths = [as_on_disk(place / path_of(text)) for place in places]
    for path in paths:
        if is_file(path):
            return path
    near = [name for path in paths for name in near_files(path)]
    looked = some(str(path.parent) for path in paths)
    raise InputError(f"its annotation {text} is not there (looked in {looked}){meant(near)}")


def near_files(path: Path, suffixes: Collection[str] = ()) -> list[str]:
    """List files whose names differ from that of a missing file in case, or else in suffix.

    Args:
        path: the missing file.
        suffixes: suffixes, in small letters, that it may have instead of its own.
    """
    others = _listed(path.parent).get(_stem(path), [])
    same = [name for name in others if name.casefold() == path.name.casefold()]
    return same or [name for name in others if Path(name).suffix.lower() in suffixes]


def _listed(folder: Path) -> dict[str, list[str]]:
    """Map stems, as `_stem`, to the names of the files of a folder; empty if it cannot be read."""
    try:
        return _names(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=16)
def _names(folder: Path, _changed: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        names.setdefault(_stem(path), []).append(shown(path.name))
    return names


def _stem(path: Path) -> str:
    return composed(path.stem).casefold()


def meant(names: Iterable[str]) -> str:
    """Return the end of a sentence that suggests names; empty if there are none."""
    listed = sorted(set(names))
    return f": did you mean {' or '.join(listed[:3])}?" if listed else ""


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
