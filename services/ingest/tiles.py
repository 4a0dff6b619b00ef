"""Turns tiles that were cut by other tools, and their masks, into regions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from shared.arrays import UInt8
from shared.contracts.base import Classes, Split
from shared.contracts.regions import RegionRule, region_table_key, region_tar_key
from shared.errors import InputError
from shared.imaging.region_sets import Region, pack_regions, region_table
from shared.imaging.slide import local_source
from shared.imaging.windows import choose_windows
from shared.storage import Store, sha256, sha256_file

Row = dict[str, Any]
"""One tile of the table, by the names of `TILE_COLUMNS`."""

MAX_TILE_SIDE = 8192
"""Greatest side of a tile, pixels; larger images must be ingested as slides."""


MAX_STEM = 60
"""Longest part of a tile's name in the keys of its regions."""


def read_tiles(store: Store, key: str) -> dict[str, list[Row]]:
    """Read a table of tiles (`TILE_COLUMNS`): slide → its tiles."""
    slides: dict[str, list[Row]] = {}
    for row in pq.read_table(store.local(key)).to_pylist():
        slides.setdefault(row["slide"], []).append(row)
    return slides


def given_splits(slides: dict[str, list[Row]]) -> dict[str, Split]:
    """Return slide → split, for the slides whose tiles state a split.

    Raises:
        InputError: tiles of one slide are in two splits.
    """
    given: dict[str, Split] = {}
    for slide, rows in slides.items():
        splits = {row["split"] for row in rows}
        if len(splits) > 1:
            raise InputError(
                f"tiles of {slide!r} are in the splits {sorted(map(str, splits))}: a slide or "
                "patient must be in one split, or the figures will be too good"
            )
        if (split := splits.pop()) is not None:
            given[slide] = split
    return given


def tile_patients(slides: dict[str, list[Row]]) -> dict[str, str | None]:
    """Return slide → patient of its tiles, where known."""
    return {slide: rows[0].get("patient") for slide, rows in slides.items()}


def cut_tiles(
    store: Store, name: str, slide: str, rows: list[Row], classes: Classes, rule: RegionRule
) -> tuple[int, str, dict[str, str]]:
    """Cut the regions out of one slide's tiles, and write their table and their shard.

    A tile that cannot be used is left out, unless it is the only one.

    Args:
        store: holds the tiles, and receives the regions.
        name: name of the region set.
        slide: name of the slide or patient.
        rows: tiles of the slide.
        classes: classes of the label maps.
        rule: size, mpp and choice of the regions.

    Returns:
        The number of regions, the SHA-256 of the shard, and the tiles that were left out with
        the reason: those that cannot be read, have changed since they were listed, are too
        small, or do not fit their masks or the classes.

    Raises:
        InputError: no tile can be used.
    """
    table: list[dict[str, object]] = []
    left_out: dict[str, str] = {}

    def regions() -> Iterator[Region]:
        for number, row in enumerate(rows):
            try:
                _check_unchanged(store, row)
                image, labels = _read(store, row, classes, rule)
            except InputError as error:
                left_out[row["image"]] = str(error)
                continue
            ratio = rule.mpp / row["mpp"]
            stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(row["image"]).stem)
            for window in choose_windows(labels, len(classes), rule.size, rule.stride, rule):
                x, y = round(window.x * ratio), round(window.y * ratio)
                # The number makes keys unique, because files in two folders may share a name.
                part = "" if stem in slide else f"-{stem[:MAX_STEM]}"
                key = f"{slide}_{number}{part}_{x}_{y}"
                table.append(
                    {
                        "key": key,
                        "slide": slide,
                        "x": x,
                        "y": y,
                        "size": rule.size,
                        "mpp": rule.mpp,
                        "tissue": 1 - window.fractions[0],
                        "fractions": window.fractions,
                        "entropy": window.entropy,
                    }
                )
                inside = np.s_[window.y : window.y + rule.size, window.x : window.x + rule.size]
                yield Region(key, slide, image[inside], labels[inside])

    tar = pack_regions(regions())
    if len(left_out) == len(rows):
        raise InputError("; ".join(dict.fromkeys(left_out.values())))
    store.put(region_tar_key(name, slide), tar)
    store.put(region_table_key(name, slide), region_table(table))
    return len(table), sha256(tar), left_out


def _check_unchanged(store: Store, row: Row) -> None:
    """Raise `InputError` if a tile or its mask is missing, or not the file that was listed."""
    for kind in ("image", "mask"):
        with local_source(store, row[kind]) as path:
            if not path.is_file():
                raise InputError(f"{path.name} is not there")
            if row[f"{kind}_sha256"] not in (None, sha256_file(path)):
                raise InputError(f"{path.name} has changed since it was listed: list it again")


def _read(store: Store, row: Row, classes: Classes, rule: RegionRule) -> tuple[UInt8, UInt8]:
    """Read a tile and its label map, both resized to the mpp of the rule."""
    image = _pixels(store, row["image"], cv2.IMREAD_COLOR_RGB)
    mask = _pixels(store, row["mask"], cv2.IMREAD_GRAYSCALE)
    name = Path(row["image"]).name
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"tile {name} is {image.shape[1]}×{image.shape[0]} px, its mask "
            f"{mask.shape[1]}×{mask.shape[0]}: both must have the same size"
        )
    if row["label"] is not None:
        labels = np.where(mask > 0, row["label"], 0).astype(np.uint8)
    elif len(classes) == 2 and mask.max() == 255:
        labels = (mask >= 128).astype(np.uint8)
    else:
        labels = mask
    if labels.max() >= len(classes):
        raise InputError(
            f"the mask of tile {name} holds {labels.max()}, but there are classes 0 to "
            f"{len(classes) - 1} ({', '.join(classes.names)})"
        )
    scale = row["mpp"] / rule.mpp
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    if min(size) < rule.size:
        raise InputError(
            f"tile {name} is {size[0]}×{size[1]} px at {rule.mpp} µm/px, smaller than a region of "
            f"{rule.size} px: take smaller regions, or a smaller region mpp"
        )
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = (
        cv2.resize(image, size, interpolation=kind),
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )
    return np.asarray(resized[0], np.uint8), np.asarray(resized[1], np.uint8)


def _pixels(store: Store, source: str, kind: int) -> UInt8:
    with local_source(store, source) as path:
        array = cv2.imdecode(np.fromfile(path, np.uint8), kind)
    if array is None:
        raise InputError(f"{Path(source).name} cannot be read as an image: is it damaged?")
    if max(array.shape[:2]) > MAX_TILE_SIDE:
        raise InputError(
            f"{Path(source).name} is {array.shape[1]}×{array.shape[0]} px, more than a tile's "
            f"{MAX_TILE_SIDE}: ingest it as a slide"
        )
    return np.asarray(array, np.uint8)
