"""Turns tiles that were cut by other tools, and their masks, into regions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from services.ingest.tile_tables import Row
from shared.arrays import UInt8
from shared.contracts.base import Classes, Split
from shared.contracts.regions import RegionRule
from shared.errors import InputError, all_quoted, quoted
from shared.imaging.mask_values import lookup
from shared.imaging.masks import Mask
from shared.imaging.region_sets import (
    Region,
    RegionRow,
    pack_regions,
    put_regions,
    region_row,
)
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.slide import MAX_UPSAMPLING
from shared.imaging.stored_slides import local_source
from shared.imaging.tile_images import MAX_TILE_SIDE, TileImage, as_seen, check_side, read_image
from shared.imaging.windows import choose_windows
from shared.patients import folded
from shared.sandbox import SandboxedFiles
from shared.storage import Store, sha256, sha256_file

MAX_STEM = 60
"""Longest part of a tile's name in the keys of its regions."""

BATCH = 16
"""Number of tiles that one process of the sandbox reads."""

READERS = ("shared.imaging.tile_images", "shared.imaging.sandboxed_mask")


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
                f"tiles of {quoted(slide)} are in the splits {sorted(map(str, splits))}: a "
                "slide or patient must be in one split, or the figures will be too good"
            )
        if (split := splits.pop()) is not None:
            given[slide] = split
    return given


def tile_patients(slides: dict[str, list[Row]]) -> dict[str, str | None]:
    """Return slide → patient of its tiles, where known.

    Raises:
        InputError: tiles of one slide are of two patients.
    """
    found: dict[str, str | None] = {}
    for slide, rows in slides.items():
        patients = {folded(own): own for row in rows if (own := row.get("patient")) is not None}
        if len(patients) > 1:
            raise InputError(
                f"tiles of {quoted(slide)} are of the patients {all_quoted(patients.values())}: a "
                "slide has one patient. Give the tiles of each its own slide"
            )
        found[slide] = next(iter(patients.values()), None)
    return found


def check_masks(store: Store, slides: dict[str, list[Row]], classes: Classes) -> None:
    """Check that masks which must tell several classes apart are not all black and white.

    Tiles whose class is known need no such mask. Masks that cannot be read, or hold what is no
    class, tell nothing here; they cost their tiles later.

    Raises:
        InputError: the masks hold 0 and 1 alone, and there are more classes.
    """
    rows = [row for tiles in slides.values() for row in tiles if row["label"] is None]
    names = classes.names[1:]
    if len(names) < 2 or not rows:
        return
    count = 0
    for start in range(0, len(rows), BATCH):
        masks = [row["mask"] for row in rows[start : start + BATCH]]
        with TileFiles(store, masks) as files:
            for mask in masks:
                try:
                    if lookup(files.mask(mask), classes, {}).table.max() > 1:
                        return
                except InputError:
                    continue
                count += 1
    if not count:
        return
    raise InputError(
        f"the masks of all {count} tiles that can be used hold 0 and 1 alone, which tells one "
        f"class, but there are {len(names)} ({', '.join(names)}): put tiles into folders that are "
        f"named like their classes, or name the one class, by --classes {names[0]} or --set "
        f"'label_names={{\"1\": {names[0]}}}'"
    )


@dataclass(frozen=True)
class CutTiles:
    """What came of the tiles of a slide.

    Attributes:
        regions: number of regions.
        sha256: SHA-256 of their shard.
        left_out: tile → why it was left out.
        transparent: number of tiles with transparent pixels, which were laid on white.
        synthetic: number of tiles that say that a model made them, or parts of them.
        renamed: keys of `label_names` that are values or colours of the masks.
    """

    regions: int
    sha256: str
    left_out: dict[str, str]
    transparent: int
    synthetic: int
    renamed: frozenset[str]


@dataclass(frozen=True)
class Tile:
    """A tile as it is cut.

    Attributes:
        image: uint8 RGB (h, w, 3).
        labels: uint8 (h, w), class indices.
        transparent: whether the file has transparent pixels, which were laid on white.
        synthetic: whether the file says that a model made it, or parts of it.
        renamed: keys of `label_names` that are values or colours of the mask.
    """

    image: UInt8
    labels: UInt8
    transparent: bool
    synthetic: bool
    renamed: frozenset[str]


class TileFiles:
    """The files of some tiles, which one process of the sandbox reads.

    Args:
        store: holds the files.
        names: their keys or absolute paths. A file that cannot be fetched costs its tile alone.
    """

    def __init__(self, store: Store, names: Iterable[str]) -> None:
        self._stack = ExitStack()
        self._places: dict[str, Path | Exception] = {}
        for name in names:
            try:
                self._places[name] = self._stack.enter_context(local_source(store, name))
            except InputError as error:
                self._places[name] = error
        paths = [place for place in self._places.values() if isinstance(place, Path)]
        self._files = self._stack.enter_context(SandboxedFiles(paths, READERS))

    def path(self, name: str) -> Path:
        """Return the local path of a file. Raises the error of fetching it."""
        place = self._places[name]
        if isinstance(place, Exception):
            raise place
        return place

    def image(self, name: str) -> TileImage:
        """Read an image; see `tile_images.read_image`."""
        return read_image(self.path(name), self._files)

    def mask(self, name: str) -> Mask:
        """Open a mask; see `sandboxed_mask.open_mask`."""
        return open_mask(self.path(name), self._files)

    def __enter__(self) -> TileFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def cut_tiles(
    store: Store,
    name: str,
    slide: str,
    rows: list[Row],
    classes: Classes,
    rule: RegionRule,
    label_names: dict[str, str] | None = None,
) -> CutTiles:
    """Cut the regions out of one slide's tiles, and write their table and their shard.

    A tile that cannot be used is left out, unless it is the only one: it cannot be read, has
    changed since it was listed, is too small, or does not fit its mask or the classes.

    Args:
        store: holds the tiles, and receives the regions.
        name: name of the region set.
        slide: name of the slide or patient.
        rows: tiles of the slide.
        classes: classes of the label maps.
        rule: size, mpp and choice of the regions.
        label_names: pixel value or colour of the masks → class name.

    Raises:
        InputError: no tile can be used.
    """
    table: list[RegionRow] = []
    left_out: dict[str, str] = {}
    renamed: set[str] = set()
    transparent = synthetic = 0

    def regions() -> Iterator[Region]:
        nonlocal transparent, synthetic
        for number, row, tile in _each(store, rows, classes, rule, label_names or {}):
            if isinstance(tile, InputError):
                left_out[row["image"]] = str(tile)
                continue
            transparent += tile.transparent
            synthetic += tile.synthetic
            renamed.update(tile.renamed)
            image, labels = tile.image, tile.labels
            ratio = rule.mpp / row["mpp"]
            stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(row["image"]).stem)
            for window in choose_windows(labels, len(classes), rule.size, rule.stride, rule):
                x, y = round(window.x * ratio), round(window.y * ratio)
                # The number makes keys unique, because files in two folders may share a name.
                part = "" if stem in slide else f"-{stem[:MAX_STEM]}"
                key = f"{slide}_{number}{part}_{x}_{y}"
                inside = np.s_[window.y : window.y + rule.size, window.x : window.x + rule.size]
                region = Region(key, slide, image[inside], labels[inside])
                table.append(region_row(region, x, y, window, rule))
                yield region

    tar = pack_regions(regions())
    if len(left_out) == len(rows):
        raise InputError("; ".join(dict.fromkeys(left_out.values())))
    put_regions(store, name, slide, table, tar)
    return CutTiles(len(table), sha256(tar), left_out, transparent, synthetic, frozenset(renamed))


def _each(
    store: Store,
    rows: list[Row],
    classes: Classes,
    rule: RegionRule,
    label_names: dict[str, str],
) -> Iterator[tuple[int, Row, Tile | InputError]]:
    """Yield each tile with its number and row, or why it cannot be used."""
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        names = [row[kind] for row in batch for kind in ("image", "mask")]
        with TileFiles(store, names) as files:
            for number, row in enumerate(batch, start):
                try:
                    _check_unchanged(files, row)
                    yield number, row, read_tile(files, row, classes, rule, label_names)
                except InputError as error:
                    yield number, row, error


def _check_unchanged(files: TileFiles, row: Row) -> None:
    """Raise `InputError` if a tile or its mask is missing, or not the file that was listed."""
    for kind in ("image", "mask"):
        path = files.path(row[kind])
        if not path.is_file():
            raise InputError(f"{path.name} is not there")
        if row[f"{kind}_sha256"] not in (None, sha256_file(path)):
            raise InputError(f"{path.name} has changed since it was listed: list it again")


def read_tile(
    files: TileFiles, row: Row, classes: Classes, rule: RegionRule, label_names: dict[str, str]
) -> Tile:
    """Read a tile and its label map, both upright and resized to the mpp of the rule.

    Raises:
        InputError: a file cannot be read, the tile is too small, or they do not fit each other
            or the classes.
    """
    name = Path(row["image"]).name
    image, turn, transparent, synthetic = files.image(row["image"])
    mask = files.mask(row["mask"])
    check_side(mask.path, mask.width, mask.height)
    table = lookup(mask, classes, label_names, foreground=row["label"])
    labels = table(mask.rows(0, mask.height))
    labels = as_seen(name, image, labels, turn, mask)
    scale = row["mpp"] / rule.mpp
    if scale > MAX_UPSAMPLING:
        raise InputError(
            f"tile {name} has {row['mpp']:g} µm/px, too coarse for regions of {rule.mpp:g}: take a "
            "larger region mpp"
        )
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    if max(size) > 2 * MAX_TILE_SIDE:
        much = f"{size[0]}×{size[1]} px at {rule.mpp} µm/px"
        raise InputError(f"tile {name} is {much}, which is too much: take a larger region mpp")
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
    shown, painted = (np.asarray(array, np.uint8) for array in resized)
    return Tile(shown, painted, transparent, synthetic, table.renamed)
