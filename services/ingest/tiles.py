"""Turns tiles that were cut by other tools, and their masks, into regions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shared.arrays import UInt8
from shared.contracts.base import Classes, Split
from shared.contracts.ingest import TILE_COLUMNS
from shared.contracts.regions import RegionRule
from shared.contracts.tenants import is_path, is_reserved
from shared.errors import InputError
from shared.imaging.mask_values import lookup
from shared.imaging.masks import INVERSE, ORIENTATION, turned
from shared.imaging.pictures import check_jpeg, open_picture
from shared.imaging.region_sets import Region, pack_regions, put_regions
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.slide import COARSEST, FINEST
from shared.imaging.stored_slides import local_source
from shared.imaging.tiff_facts import inspect, is_tiff, tiff_size
from shared.imaging.windows import choose_windows
from shared.storage import ObjectNotFoundError, Store, is_fault, sha256, sha256_file

Row = dict[str, Any]
"""One tile of the table, by the names of `TILE_COLUMNS`."""

MAX_TILE_SIDE = 8192
"""Greatest side of a tile, pixels; larger images must be ingested as slides."""


TEXTS = [field.name for field in TILE_COLUMNS if pa.types.is_string(field.type)]
MAX_TEXT = 4096
"""Longest text of a table of tiles, bytes."""

MAX_TILES = 2_000_000
"""Greatest number of tiles in a table, all of which are in memory."""

TABLES = "tiles/"
"""Folder of the tables that the command line writes."""

MAX_STEM = 60
"""Longest part of a tile's name in the keys of its regions."""

# What is wrong with a file becomes an InputError; OpenCV would print it as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_tiles(store: Store, key: str) -> dict[str, list[Row]]:
    """Read a table of tiles (`TILE_COLUMNS`): slide → its tiles.

    Only the command line writes tables below `tiles/`, which may name its user's files by their
    absolute paths. A table elsewhere was uploaded, and names objects of the store.

    Raises:
        InputError: the object is no such table, has more than `MAX_TILES` rows, or names files
            that it may not.
    """
    path = store.local(key)
    try:
        file = pq.ParquetFile(path, read_dictionary=TEXTS)
        if file.metadata.num_rows > MAX_TILES:
            raise InputError(f"{key} lists {file.metadata.num_rows:,} tiles, at most {MAX_TILES:,}")
        table = file.read(TILE_COLUMNS.names)
        _check_texts(key, table)  # before each row has its own copy of a text
        rows = table.cast(TILE_COLUMNS).to_pylist()
    # pyarrow raises errors of many kinds for damaged tables.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if is_fault(error):
            raise
        raise InputError(f"{key} is not a table of tiles: {error}") from error
    slides: dict[str, list[Row]] = {}
    for row in rows:
        for name in (row["image"], row["mask"]):
            _check_place(key, name)
        if not (row["mpp"] and FINEST <= row["mpp"] <= COARSEST):
            raise InputError(f"{key}: {row['image']} has {row['mpp']} µm/px, which no tile has")
        slides.setdefault(row["slide"], []).append(row)
    return slides


def _check_texts(key: str, table: pa.Table) -> None:
    """Raise `InputError` if a table has a text that is longer than names and paths are."""
    for name in TEXTS:
        for chunk in table.column(name).chunks:
            values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            longest = pc.max(pc.binary_length(values)).as_py() or 0
            if longest > MAX_TEXT:
                raise InputError(f"{key} has a text of {longest:,} bytes in {name!r}: no name is")


def _check_place(table: str, name: str | None) -> None:
    """Raise `InputError` if a table names a file that its author may not read."""
    if not name:
        raise InputError(f"{table} has a row without an image or a mask")
    if PurePosixPath(name).is_absolute() and table.startswith(TABLES):
        return
    if is_path(name) or is_reserved(name):
        raise InputError(
            f"{table} names {name!r}, but an uploaded table names objects by their keys: upload "
            "the tiles, and give their keys"
        )


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


def check_masks(store: Store, slides: dict[str, list[Row]], classes: Classes) -> None:
    """Check that masks which must tell several classes apart are not all black and white.

    Tiles whose class is known need no such mask. Masks that cannot be read cost their tiles later.

    Raises:
        InputError: the masks hold 0 and 1 alone, and there are more classes.
    """
    rows = [row for tiles in slides.values() for row in tiles if row["label"] is None]
    names = classes.names[1:]
    if len(names) < 2 or not rows:
        return
    for row in rows:
        try:
            with local_source(store, row["mask"]) as path:
                if any(strip.max(initial=0) > 1 for strip in open_mask(path).strips()):
                    return
        except (InputError, ObjectNotFoundError):
            continue
    raise InputError(
        f"the masks of all {len(rows)} tiles hold 0 and 1 alone, which tells one class, but there "
        f"are {len(names)} ({', '.join(names)}): put tiles into folders that are named like their "
        f"classes, or name the one class, by --classes {names[0]} or --set "
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
    """

    regions: int
    sha256: str
    left_out: dict[str, str]
    transparent: int


@dataclass(frozen=True)
class Tile:
    """A tile as it is cut.

    Attributes:
        image: uint8 RGB (h, w, 3).
        labels: uint8 (h, w), class indices.
        transparent: whether the file has transparent pixels, which were laid on white.
    """

    image: UInt8
    labels: UInt8
    transparent: bool


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
    table: list[dict[str, object]] = []
    left_out: dict[str, str] = {}
    transparent: list[bool] = []

    def regions() -> Iterator[Region]:
        for number, row in enumerate(rows):
            try:
                _check_unchanged(store, row)
                tile = read_tile(store, row, classes, rule, label_names or {})
            except InputError as error:
                left_out[row["image"]] = str(error)
                continue
            transparent.append(tile.transparent)
            image, labels = tile.image, tile.labels
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
    put_regions(store, name, slide, table, tar)
    return CutTiles(len(table), sha256(tar), left_out, sum(transparent))


def _check_unchanged(store: Store, row: Row) -> None:
    """Raise `InputError` if a tile or its mask is missing, or not the file that was listed."""
    for kind in ("image", "mask"):
        with local_source(store, row[kind]) as path:
            if not path.is_file():
                raise InputError(f"{path.name} is not there")
            if row[f"{kind}_sha256"] not in (None, sha256_file(path)):
                raise InputError(f"{path.name} has changed since it was listed: list it again")


def read_tile(
    store: Store, row: Row, classes: Classes, rule: RegionRule, label_names: dict[str, str]
) -> Tile:
    """Read a tile and its label map, both upright and resized to the mpp of the rule.

    Raises:
        InputError: a file cannot be read, the tile is too small, or they do not fit each other
            or the classes.
    """
    name = Path(row["image"]).name
    with local_source(store, row["image"]) as path:
        image, turn, transparent = read_upright(path)
    with local_source(store, row["mask"]) as path:
        mask = open_mask(path)
        _check_side(path, mask.width, mask.height)
        table = lookup(mask, classes, label_names, foreground=row["label"])
        labels = table(mask.rows(0, mask.height))
    labels = _as_seen(name, image, labels, turn, mask.orientation)
    scale = row["mpp"] / rule.mpp
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
    return Tile(np.asarray(resized[0], np.uint8), np.asarray(resized[1], np.uint8), transparent)


def _as_seen(name: str, image: UInt8, labels: UInt8, turn: int, mask_turn: int) -> UInt8:
    """Turn the labels of a tile as its image was turned.

    A mask that states an orientation is turned by its own. One that states none belongs to the
    image as it is stored, or as it is seen; only their sizes can tell which.

    Raises:
        InputError: the sizes differ, or cannot tell how the mask lies.
    """
    if mask_turn != 1:
        labels = turned(labels, mask_turn)
    elif turn != 1:
        stored, seen = turned(image, INVERSE.get(turn, turn)).shape[:2], image.shape[:2]
        if stored == seen:
            raise InputError(
                f"tile {name} states the EXIF orientation {turn}, its mask none, so how they lie "
                "is unknown: save the tile upright, without this tag"
            )
        if labels.shape == stored:
            labels = turned(labels, turn)
    if image.shape[:2] != labels.shape:
        raise InputError(
            f"tile {name} is {image.shape[1]}×{image.shape[0]} px, its mask "
            f"{labels.shape[1]}×{labels.shape[0]}: both must have the same size"
        )
    return labels


def read_upright(path: Path) -> tuple[UInt8, int, bool]:
    """Read the image of a tile.

    Returns:
        uint8 RGB (h, w, 3), upright, with transparent pixels laid on white; the orientation that
        the file states; and whether it has transparent pixels.

    Raises:
        InputError: the file is no image, is damaged, or is too large.
    """
    damaged = InputError(f"{path.name} cannot be read as an image: is it damaged?")
    if is_tiff(path):
        inspect(path).check_samples(path)
    turn, alpha = 1, None
    try:
        with open_picture(path) as picture:
            _check_side(path, *picture.size)
            turn = int(picture.getexif().get(ORIENTATION, 1))
            picture.load()  # OpenCV fills what a truncated file lacks
            if picture.format == "JPEG":
                check_jpeg(path)
            if picture.has_transparency_data:
                alpha = picture.convert("RGBA")
    except UnidentifiedImageError:
        # It may be a TIFF of 16 bits, which only OpenCV reads.
        _check_side(path, *tiff_size(path))
        if _decoded(path, cv2.IMREAD_UNCHANGED, damaged).shape[2:] == (4,):
            raise InputError(
                f"{path.name} has 16 bits per channel and transparency: save it with 8 bits"
            ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise damaged from error
    turn = turn if turn in INVERSE else 1
    if alpha is not None and np.asarray(alpha.getchannel("A")).min() < 255:
        white = Image.new("RGBA", alpha.size, "white")
        laid = Image.alpha_composite(white, alpha).convert("RGB")
        return turned(np.asarray(laid, np.uint8), turn), turn, True
    array = _decoded(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, damaged)
    _check_side(path, array.shape[1], array.shape[0])
    return turned(np.asarray(array, np.uint8), turn), turn, False


def _decoded(path: Path, flags: int, damaged: InputError) -> NDArray[Any]:
    """Read an image by OpenCV; raise `damaged` if that is not possible."""
    data = np.fromfile(path, np.uint8)
    array = cv2.imdecode(data, flags) if data.size else None
    if array is None:
        raise damaged
    return array


def _check_side(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_TILE_SIDE:
        raise InputError(
            f"{path.name} is {width}×{height} px, more than a tile's {MAX_TILE_SIDE}: ingest it "
            "as a slide"
        )
