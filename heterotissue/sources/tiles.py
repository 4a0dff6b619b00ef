"""Finding tiles that were cut elsewhere, and their masks."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from heterotissue.sources.annotations import LABELED_BY_PNG, MASKS, Labels
from heterotissue.sources.files import UNFINISHED, is_mask, mask_of_slide, unusable, walk
from heterotissue.sources.keeping import storing
from heterotissue.sources.mask_folders import MaskFolders
from heterotissue.sources.names import Named, distinct_names
from heterotissue.sources.patients import Patients, matched, pattern
from heterotissue.sources.records import Found, Refusal, explain, shown, some
from heterotissue.sources.split_folders import check_split_folders, split_of
from heterotissue.sources.tile_checks import (
    Tile,
    check_fine,
    check_folders,
    check_growth,
    check_side,
    check_splits,
    warn_of_equal_names,
    without_shared,
)
from heterotissue.sources.unread import why_unread
from shared.contracts.base import Classes, Split, spelling
from shared.contracts.tiles import TILE_COLUMNS, tiles_key
from shared.errors import InputError, quoted
from shared.imaging.pictures import open_picture
from shared.imaging.tiff_facts import inspect, is_tiff
from shared.patients import origin_of
from shared.storage import (
    Store,
    content_hash,
    sha256,
    sha256_file,
)
from shared.storage.formats import table_bytes

TILES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}

SMALL = 4_000_000
"""Bytes up to which a file is read faster than its remembered hash is looked up."""

LARGEST_REGION = 256
REGION_STEP = 32
"""Default sides of regions are multiples of this, which every network takes."""


@dataclass
class TileTable:
    """A table of tiles in the store, and what was left out.

    Attributes:
        key: for `IngestRequest.tiles`.
        tiles: number of tiles in the table.
        smallest: width or height of the smallest tile, pixels.
        renamed: keys of `label_names` that are names of folders.
        refused: tiles that were left out, and why.
        notes: remarks for the user.
    """

    key: str
    tiles: int
    smallest: int
    renamed: frozenset[str]
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def region_size(self, mpp: float, region_mpp: float) -> int:
        """Return the largest side of a region that fits every tile, at most 256 pixels.

        Args:
            mpp: µm per pixel of the tiles.
            region_mpp: µm per pixel of the regions.

        Raises:
            InputError: the tiles are too coarse.
        """
        check_fine(mpp, region_mpp)
        side = math.floor(self.smallest * mpp / region_mpp + 1e-6)
        return max(REGION_STEP, min(LARGEST_REGION, side // REGION_STEP * REGION_STEP))


def tile_table(
    store: Store,
    cohort: str,
    folder: Path,
    *,
    masks: Path | None,
    classes: Classes,
    slide_pattern: str | None,
    mpp: float,
    label_names: Mapping[str, str] | None = None,
    patient: str | None = None,
    allow_leakage: bool = False,
    replace: bool = False,
    region: tuple[int, float] | None = None,
) -> TileTable:
    """Put a table of a folder's tiles and masks into the store; the files stay in place.

    A folder named train, val or test above a tile gives the tile's split. In a folder that has
    the name of a class, the foreground of a mask is that class. If no folder has, masks hold class
    indices (or, for two classes, 0 and 255). Tiles that cannot be used are refused; the others
    go on. Tiles of equal content are taken once, if their masks are equal too.

    Args:
        store: receives the table.
        cohort: name of the cohort.
        folder: folder of the tiles, which may be in subfolders.
        masks: folder of the masks, with the same subfolders; None: masks are beside the tiles, or
            have their names in a folder such as masks/ beside that of the tiles.
        classes: classes of the masks.
        slide_pattern: regular expression that is searched in a tile's file name; its first group
            is the name of the tile's slide. None: the tiles of a patient are one slide, or, if
            patients are not given either, every tile is a slide of its own.
        mpp: µm per pixel of the tiles.
        label_names: name of a folder → class of its tiles, beside the names of the classes; other
            keys are left to the masks.
        patient: regular expression or table that tells a tile's patient.
        allow_leakage: whether the slides of a patient may be in two splits.
        replace: whether tiles that the cohort has may be missing now.
        region: side (pixels) and µm per pixel of the regions that every tile must hold; smaller
            tiles are refused. None: any tile is taken.

    Raises:
        InputError: `folder` is missing or has no tile with a mask, a pattern fits no tile, the
            tiles of a slide or of a patient are in two splits, only some folders have the name of
            a class, or the cohort has other tiles.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if region:
        check_fine(mpp, region[1])
    found = Found()
    paths = _tiles(folder, masks, found)
    apart = masks is not None and not folder.resolve().is_relative_to(masks.resolve())
    beside = MaskFolders(folder, [] if apart else paths)
    paths = [path for path in paths if path not in beside.masks]
    search = Labels(masks, (path.relative_to(folder) for path in paths))
    patients = Patients(patient, paths) if patient else None
    found.notes += patients.unread() if patients else []
    slides = pattern(slide_pattern, "--slide") if slide_pattern else None
    label_names = label_names or {}
    meant = [*zip(classes.names, classes.names, strict=True), *label_names.items()]
    folders = {(spelling(name), classes.names.index(of)) for name, of in meant}
    tiles: dict[str, Tile] = {}
    for path in paths:
        below = path.relative_to(folder)
        try:
            tile = _read(path, below, search, beside, patients, slides, classes, folders, found)
            check_side(tile, mpp, region)
        except InputError as error:
            found.refuse(below, str(error))
        except OSError as error:
            found.refuse(below, f"cannot be read: {explain(error)}")
        else:
            known = tiles.setdefault(tile.image_sha256, tile)
            if known is not tile and _said(known) != _said(tile):
                found.refuse(
                    below,
                    f"has the same content as {shown(known.below)}, but another mask, class, "
                    "patient or split: remove the one that is wrong",
                )
            elif known is not tile:
                found.notes.append(
                    f"{shown(below)} has the same content as {shown(known.below)}: taken once"
                )
    tiles = without_shared(found, tiles)
    if not tiles:
        reasons = [f"{item.path}: {item.reason}" for item in found.refused]
        raise InputError(f"no tile{' is left' if paths else ''} in {folder}: {some(reasons, 3)}")
    check_folders(list(tiles.values()), classes)
    check_split_folders({tile.below: tile.split for tile in tiles.values()}, found, "tiles")
    rows = _rows(list(tiles.values()), found, mpp)
    check_splits(rows, allow_leakage)
    table = table_bytes(pa.Table.from_pylist(rows, schema=TILE_COLUMNS))
    key = tiles_key(cohort, sha256(table))
    with storing(store):
        if not replace:
            check_growth(store, cohort, set(tiles), mpp)
        store.put(key, table)
    smallest = min(tile.side for tile in tiles.values())
    there = {spelling(part) for tile in tiles.values() for part in tile.below.parent.parts}
    used = frozenset(name for name in label_names if spelling(name) in there)
    return TileTable(key, len(tiles), smallest, used, found.refused, _short(found.notes))


def _said(tile: Tile) -> tuple[str, int | None, str | None, Split | None]:
    return tile.mask_sha256, tile.label, tile.patient, tile.split


def _short(notes: list[str]) -> list[str]:
    """Keep the first few notes, because there may be one for every tile."""
    rest = len(notes) - 10
    return notes if rest <= 0 else [*notes[:10], f"… and {rest} more notes"]


def _tiles(folder: Path, masks: Path | None, found: Found) -> list[Path]:
    """List the images in a folder and below that are no masks.

    Where masks have a folder of their own, no name marks a mask in that of the tiles. Where they
    are said to lie in that of the tiles, or in one above, a PNG that has the name of a JPEG or TIFF
    is its mask.
    """
    inside = masks.resolve() if masks else None
    if inside and folder.resolve().is_relative_to(inside):
        inside = None
    tiles, alone = [], []
    for _, files in walk(folder, found, inside):
        for path in files:
            if path.name.startswith(".") or path.suffix.lower() in UNFINISHED:
                continue
            if masks and not inside and _is_labels(path):
                continue
            if not inside and is_mask(path):
                alone += [] if mask_of_slide(path) else [shown(path.relative_to(folder))]
                continue
            if inside and path.resolve().is_relative_to(inside):
                continue
            if path.suffix.lower() in TILES:
                tiles.append(path)
            elif (reason := why_unread(path)) and not any(
                path.with_suffix(suffix).exists() for suffix in TILES
            ):
                found.refuse(path.relative_to(folder), reason)
    if alone:
        found.notes.append(
            f"skipped {len(alone)} images without a tile, which are masks by their names: "
            f"{some(alone)} (give the folder of masks by --masks if they are tiles)"
        )
    return tiles


def _is_labels(path: Path) -> bool:
    """Say whether a file is a PNG beside a tile of its name, as QuPath exports labels."""
    endings = [ending for suffix in LABELED_BY_PNG for ending in (suffix, suffix.upper())]
    return path.suffix.lower() == ".png" and any(path.with_suffix(e).exists() for e in endings)


def _read(
    path: Path,
    below: Path,
    search: Labels,
    beside: MaskFolders,
    patients: Patients | None,
    slides: re.Pattern[str] | None,
    classes: Classes,
    folders: Set[tuple[str, int]],
    found: Found,
) -> Tile:
    """Describe one tile. Raises `InputError` or `OSError` if it cannot be used."""
    if reason := unusable(path):
        raise InputError(reason)
    masks = beside.of(path)
    if not masks or search.folder is None:
        masks = [*search.of(path, below, MASKS, LABELED_BY_PNG), *masks]
    if not masks:
        place = search.folder or path.parent
        raise InputError(
            f"has no mask: looked in {place} for {path.stem}.mask.png, {path.stem}_mask.png and "
            "similar names" + ("" if search.folder else f" ({_hint(path)})") + search.apart(below)
        )
    if len(masks) > 1 and masks[0].name == masks[1].name:
        raise InputError(
            f"may have any of several masks: {some(map(shown, masks))}. Put masks into the same "
            "subfolders as tiles"
        )
    if len(masks) > 1:
        found.notes.append(
            f"{shown(below)} has several masks: {some((shown(m.name) for m in masks), 3)}; taken: "
            f"{shown(masks[0].name)}"
        )
    if reason := unusable(masks[0]):
        raise InputError(f"has a mask, {masks[0].name}, that {reason}")
    owner = patients.of(path, below) if patients else None
    if patients and owner is None:
        raise InputError(f"--patient {quoted(patients.rule)} tells no patient of it")
    slide = matched(slides, path.name) if slides else None
    if slides and slide is None:
        raise InputError(
            f"does not fit the pattern {quoted(slides.pattern)}: its first group in (brackets) "
            "must be the slide's name"
        )
    owner = origin_of(path.name, owner, None).patient
    parts = {spelling(part) for part in below.parent.parts}
    labels = {label for name, label in folders if name in parts}
    if len(labels) > 1:
        names = ", ".join(classes.names[label] for label in sorted(labels))
        raise InputError(f"lies in the folders of several classes: {names}")
    return Tile(
        path,
        below,
        masks[0],
        owner,
        slide or (owner if patients else None),
        split_of(below),
        next(iter(labels), None),
        _side(path),
        _hash(path),
        _hash(masks[0]),
    )


def _hint(path: Path) -> str:
    """Say where else the mask of a tile may be, for which no folder is given."""
    mask = path.with_suffix(".png")
    if path.suffix.lower() in LABELED_BY_PNG and mask.exists():
        return f"if {shown(mask.name)} is its mask, give the tiles' own folder by --masks too"
    return "--masks gives a folder of their own"


def _hash(path: Path) -> str:
    return sha256_file(path) if path.stat().st_size <= SMALL else content_hash(path)


def _side(path: Path) -> int:
    """Return a tile's smaller side in pixels, from its header. Raises `InputError`."""
    if is_tiff(path):  # Pillow does not open all of them
        facts = inspect(path)
        facts.check_samples(path)
        return min(facts.size)
    try:
        with open_picture(path) as image:
            return min(image.size)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("cannot be read as an image: is it damaged?") from error


def _rows(tiles: list[Tile], found: Found, mpp: float) -> list[dict[str, Any]]:
    """Make the rows of the table; names of slides differ between slides."""
    grouped = defaultdict(list)
    for tile in tiles:
        # Without a pattern a tile is a slide of its own, also if others in other folders have
        # its name; with one, equal names in the tiles of two patients are two slides.
        alone = tile.slide is None
        name, place = tile.slide or tile.path.stem, tile.below.as_posix() if alone else ""
        grouped[name, tile.patient, place].append(tile)
    warn_of_equal_names(tiles, found)
    names = distinct_names(
        [
            Named(
                slide,
                owner if owner and not below else "-".join(Path(below).parent.parts),
                sha256(f"{owner}/{below}/{slide}".encode("utf-8", "surrogateescape")),
            )
            for slide, owner, below in grouped
        ],
        {},
    )
    rows: list[dict[str, Any]] = []
    for name, members in zip(names, grouped.values(), strict=True):
        rows += [
            {
                "slide": name,
                "patient": tile.patient,
                "split": tile.split,
                "image": str(tile.path.resolve()),
                "image_sha256": tile.image_sha256,
                "mask": str(tile.mask.resolve()),
                "mask_sha256": tile.mask_sha256,
                "label": tile.label,
                "mpp": mpp,
            }
            for tile in members
        ]
    return sorted(rows, key=lambda row: row["image"])
