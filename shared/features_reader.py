"""Reads a features file of unknown origin; it runs inside the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shared.arrays import Float32, Int64
from shared.errors import InputError

MIN_LIMIT, MOST_PACKED = 64 << 20, 64
"""Bytes that a packed dataset may always have, and times the bytes of its file that a larger one
may have: numbers of encoders can hardly be packed, zeros can a thousandfold."""

LARGEST = float(np.finfo(np.float16).max)
"""Largest magnitude of a feature. Encoders give numbers near 1; sums of squares of far larger
ones overflow."""

_ATTRIBUTES = (
    "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap",
    "level0_width", "level0_height", "patch_level", "downsample", "custom_downsample", "level_dim",
)  # fmt: skip
"""Attributes of `coords` that are numbers or pairs of numbers: TRIDENT's, then CLAM's."""

_ERRORS = (
    OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError,
)  # fmt: skip


class FeaturesReader:
    """Reads a features file of this project, TRIDENT or CLAM.

    A batch axis of length 1, as in (1, N, D), is dropped.

    Attributes:
        facts: the number of `patches`, `dim`, the `stated` attributes, and the name of the
            `slide`.

    Args:
        path: the .h5 file.
        name: name of the file in messages.

    Raises:
        InputError: the file has another layout, or its coordinates do not fit its features or
            are no whole numbers.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        try:
            self._file = h5py.File(path, "r", locking=False)
            places, self._rows = (
                own_dataset(self._file, key, name) for key in ("coords", "features")
            )
            _check_shapes(name, places.shape, self._rows.shape)
            _check_kinds(name, places.dtype, self._rows.dtype)
            self._coords = _whole(name, np.asarray(places).reshape(-1, 2))
            stated, slide = _attributes(name, places, self._rows)
        except _ERRORS as error:
            raise self._unreadable(error) from error
        self.facts = {
            "patches": len(self._coords),
            "dim": self._rows.shape[-1],
            "stated": stated,
            "slide": slide,
        }

    def read(self, what: str, start: int, stop: int) -> Int64 | Float32:
        """Return 'coords' int64 (n, 2), or 'features' float32 (n, dim), of consecutive patches.

        Raises:
            InputError: features are not finite or beyond ±65,504, or cannot be read.
        """
        if what == "coords":
            return np.ascontiguousarray(self._coords[start:stop])
        axes = self._rows.shape[:-1]
        axis = next((i for i, n in enumerate(axes) if n == len(self._coords)), 0)
        try:
            rows = self._rows[(slice(None),) * axis + (slice(start, stop),)]
        except _ERRORS as error:
            raise self._unreadable(error) from error
        block = np.asarray(rows).reshape(-1, self._rows.shape[-1])
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(block) <= LARGEST)
        if wrong.any():
            value = block[wrong][0]
            reason = "not finite" if not np.isfinite(value) else f"beyond ±{LARGEST:,.0f}"
            raise InputError(
                f"{self.name}: {wrong.any(1).sum()} of {len(block)} rows have features that are "
                f"{reason}, such as {value:g}"
            )
        return np.ascontiguousarray(block, np.float32)

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(
            f"{self.name} is not a features file: it needs the HDF5 datasets 'features' (N, D) and "
            f"'coords' (N, 2) ({error})"
        )


def packed_limit(path: Path) -> int:
    """Return the largest number of bytes that a packed dataset of a file may have."""
    return max(MIN_LIMIT, MOST_PACKED * path.stat().st_size)


def _check_shapes(name: str, places: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Raise `InputError` unless the shapes are (N, 2) and (N, D), or have a batch axis besides."""
    count = places[-2] if len(places) >= 2 else 0
    if rows == (0,):
        raise InputError(f"{name} has no features: the tool found no patches")
    whole = len(rows) == 1 or (count > 1 and len(rows) >= 2 and set(rows[:-1]) == {1})
    if whole:
        raise InputError(
            f"{name}: features {rows} for coords {places} are one row for the whole slide, as in "
            "TRIDENT's slide_features folders: import the features of patches"
        )
    flat = [tuple(n for n in shape[:-1] if n != 1) or (1,) for shape in (places, rows) if shape]
    if (
        len(flat) < 2 or len(places) > 3 or len(rows) > 3 or places[-1] != 2 or len(rows) < 2
        or len(flat[0]) != 1 or flat[0] != flat[1]
    ):  # fmt: skip
        raise InputError(f"{name}: features {rows} and coords {places} do not fit together")
    if rows[-1] == 0:
        raise InputError(f"{name}: features {rows} have a width of 0")


def _check_kinds(name: str, places: np.dtype[Any], rows: np.dtype[Any]) -> None:
    if rows.kind in "iu" and rows.itemsize == 2:
        raise InputError(
            f"{name}: features are {rows} whole numbers, which may be the bits of 16-bit floating "
            "point numbers: save them as float16 or float32"
        )
    if places.kind not in "iuf":
        raise InputError(f"{name}: coords are {places}, not numbers")


def _whole(name: str, coords: Any) -> Int64:
    """Return coordinates (N, 2) as int64. Raises `InputError` if they are no whole numbers."""
    if coords.dtype.kind != "f":
        if coords.size and int(coords.max()) >= 1 << 53:
            raise InputError(f"{name}: coords reach {int(coords.max())}, far beyond any slide")
        return np.asarray(coords, np.int64)
    rounded = np.round(coords)
    with np.errstate(invalid="ignore"):
        right = (np.abs(coords) < 1 << 53) & (np.abs(coords - rounded) < 1e-3)
    wrong = ~right.all(1)
    if wrong.any():
        x, y = coords[wrong][0]
        raise InputError(
            f"{name}: {wrong.sum()} of {len(coords)} coords are no whole level-0 pixels, such as "
            f"({x:g}, {y:g})"
        )
    return np.asarray(rounded, np.int64)


_OWNER = {"name", "slide", "slide_id", "slide_name"}
"""Attributes of the file or its datasets that name the slide; TRIDENT and CLAM write the first."""


def _attributes(
    name: str, places: h5py.Dataset, rows: h5py.Dataset
) -> tuple[dict[str, float], str | None]:
    """Read the attributes of `coords` that are numbers, and the slide's name."""
    stated: dict[str, float] = {}
    for key in _ATTRIBUTES:
        if key not in places.attrs:
            continue
        value = places.attrs[key]
        try:
            number = float(np.ravel(value)[0])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{name}: the attribute {key} is {value!r}, not a number") from error
        if not np.isfinite(number) or number < 0:
            raise InputError(f"{name}: the attribute {key} is {number:g}, which cannot be")
        stated[key] = number
    owners: dict[str, None] = {}
    for attributes in (places.attrs, rows.attrs, rows.file.attrs):
        for key in _OWNER & set(attributes):
            value = attributes[key]
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and text:
                owners[text] = None
    if len(owners) > 1:
        raise InputError(f"{name} states that it is of several slides: {', '.join(owners)}")
    return stated, next(iter(owners), None)


def own_dataset(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    """Return a dataset of numbers whose values lie in the file itself.

    HDF5 follows links, external storage and virtual datasets to any file that the process may
    read, so a foreign file must not have them.

    Args:
        file: the open file.
        name: name of the dataset.
        where: name of the file in messages.

    Raises:
        KeyError: the file has no such dataset.
        InputError: the dataset lies elsewhere, holds no numbers, or is larger than the file.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no dataset {name!r}")
    item = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise InputError(
            f"{where}: {name!r} is not a dataset of this file but a group, a link, external "
            "storage or a virtual dataset: copy the values into the file"
        )
    try:
        dtype = item.dtype
    except TypeError as error:
        raise InputError(f"{where}: {name!r} holds no numbers ({error})") from error
    if item.shape is None or dtype.kind not in "iuf":
        raise InputError(f"{where}: {name!r} holds {dtype}, not an array of real numbers")
    path = Path(file.filename)
    limit = packed_limit(path) if item.chunks else path.stat().st_size
    if item.nbytes > limit:
        raise InputError(f"{where}: {name!r} states {item.nbytes:,} bytes, at most {limit:,} fit")
    return item
