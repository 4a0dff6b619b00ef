"""Features as HDF5, in the layout that TRIDENT and CLAM write and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shared.arrays import Float32, Int64
from shared.contracts.ingest import PatchGrid, SlideRecord
from shared.errors import InputError

MAX_DATASET_BYTES = 16 << 30
"""Largest dataset of a foreign file: some two million patches of 2,048 numbers."""

LARGEST = float(np.finfo(np.float16).max)
"""Largest magnitude of a feature. Encoders give numbers near 1; sums of squares of far larger
ones overflow."""

ROWS_AT_ONCE = 65536

_ATTRIBUTES = (
    "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap",
    "level0_width", "level0_height", "patch_level", "downsample", "custom_downsample", "level_dim",
)  # fmt: skip
"""Attributes of `coords` that are numbers or pairs of numbers: TRIDENT's, then CLAM's."""


_OWNER = {"name", "slide", "slide_id", "slide_name"}
"""Attributes of the file or its datasets that name the slide; TRIDENT and CLAM write the first."""


@dataclass(frozen=True)
class PatchFeatures:
    """Features of a slide's patches.

    Attributes:
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        features: float32 (N, D), one row per patch.
        stated: the attributes of `coords` that the file states, by TRIDENT's and CLAM's names;
            the first number of each pair.
        slide: name of the slide; None if the file does not state it.
    """

    coords: Int64
    features: Float32
    stated: Mapping[str, float] = field(default_factory=dict)
    slide: str | None = None


def write_features(
    path: Path,
    coords: Int64,
    batches: Iterable[Float32],
    dim: int,
    slide: SlideRecord,
    grid: PatchGrid,
    encoder: str,
) -> None:
    """Write the features of a slide's patches, with the attributes of TRIDENT's files.

    Args:
        path: the .h5 file to write.
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        batches: float32 (n, dim) arrays, together N rows in the order of `coords`.
        dim: width of the features.
        slide: the slide of the patches.
        grid: size and spacing of the patches.
        encoder: name of the encoder.
    """
    with h5py.File(path, "w") as file:
        places = file.create_dataset("coords", data=coords, track_times=False)
        places.attrs.update(trident_attributes(slide, grid))
        features = file.create_dataset(
            "features", (len(coords), dim), np.float32, track_times=False
        )
        features.attrs.update({"name": slide.slide, "savetodir": "", "encoder": encoder})
        done = 0
        for batch in batches:
            features[done : done + len(batch)] = batch
            done += len(batch)


def trident_attributes(slide: SlideRecord, grid: PatchGrid) -> dict[str, Any]:
    """Return TRIDENT's attributes of `coords`.

    TRIDENT's patches are square in level-0 pixels. Where the slide's pixels are not square, ours
    are not: the attributes hold the width in level-0 pixels and the magnification along x.
    """
    return {
        "patch_size": grid.size,
        "patch_size_level0": max(1, round(grid.size * grid.mpp / slide.mpp)),
        "level0_magnification": magnification(slide.mpp),
        "target_magnification": magnification(grid.mpp),
        "overlap": max(0, grid.size - grid.stride),
        "name": slide.slide,
        "savetodir": "",
        "level0_width": slide.width,
        "level0_height": slide.height,
    }


def magnification(mpp: float) -> float:
    """Return the magnification of a resolution: 20 at 0.5 µm/px."""
    return float(f"{10 / mpp:.6g}")


def read_features(path: Path, name: str | None = None) -> PatchFeatures:
    """Read a features file of this project, TRIDENT or CLAM.

    A batch axis of length 1, as in (1, N, D), is dropped.

    Args:
        path: the .h5 file.
        name: name of the file in messages; None: that of `path`.

    Raises:
        InputError: the file has another layout, its coordinates do not fit its features or are
            no whole numbers, or features are not finite or beyond ±65,504.
    """
    name = name or path.name
    try:
        with h5py.File(path, "r") as file:
            places, rows = (own_dataset(file, key, name) for key in ("coords", "features"))
            _check_shapes(name, places.shape, rows.shape)
            _check_kinds(name, places.dtype, rows.dtype)
            coords = _whole(name, np.asarray(places).reshape(-1, 2))
            features = _read_rows(name, rows, len(coords))
            return PatchFeatures(coords, features, *_attributes(name, places, rows))
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"{name} is not a features file: it needs the HDF5 datasets 'features' (N, D) and "
            f"'coords' (N, 2) ({error})"
        ) from error
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory") from error


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


def _read_rows(name: str, rows: h5py.Dataset, count: int) -> Float32:
    """Read features as float32 (count, D), block by block. Raises `InputError` for bad values."""
    features = np.empty((count, rows.shape[-1]), np.float32)
    axis = next((i for i, n in enumerate(rows.shape[:-1]) if n == count), 0)
    for start in range(0, count, ROWS_AT_ONCE):
        part = slice(start, min(count, start + ROWS_AT_ONCE))
        block = np.asarray(rows[(slice(None),) * axis + (part,)]).reshape(-1, rows.shape[-1])
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(block) <= LARGEST)
        if wrong.any():
            value = block[wrong][0]
            reason = "not finite" if not np.isfinite(value) else f"beyond ±{LARGEST:,.0f}"
            raise InputError(
                f"{name}: {wrong.any(1).sum()} of {len(block)} rows have features that are "
                f"{reason}, such as {value:g}"
            )
        features[part] = block
    return features


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


def own_dataset(file: h5py.File, name: str, where: str | None = None) -> h5py.Dataset:
    """Return a dataset of numbers whose values lie in the file itself.

    HDF5 follows links, external storage and virtual datasets to any file that the process may
    read, so a foreign file must not have them.

    Args:
        file: the open file.
        name: name of the dataset.
        where: name of the file in messages; None: its own.

    Raises:
        KeyError: the file has no such dataset.
        InputError: the dataset lies elsewhere, holds no numbers, or is larger than the file.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no dataset {name!r}")
    item = file[name] if isinstance(link, h5py.HardLink) else None
    where = where or Path(file.filename).name
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
    limit = MAX_DATASET_BYTES if item.chunks else Path(file.filename).stat().st_size
    if item.nbytes > limit:
        raise InputError(f"{where}: {name!r} states {item.nbytes:,} bytes, at most {limit:,} fit")
    return item
