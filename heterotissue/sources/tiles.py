"""Finding tiles that were cut elsewhere, and their masks."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from heterotissue.sources.annotations import LABELED_BY_PNG, MASKS, Labels
from heterotissue.sources.files import unusable
from heterotissue.sources.keeping import storing
from heterotissue.sources.mask_folders import MaskFolders
from heterotissue.sources.names import Named, distinct_names
from heterotissue.sources.patients import Patients, matched, pattern
from heterotissue.sources.records import Found, Refusal, is_utf8, shown, some
from heterotissue.sources.split_folders import check_split_folders, split_of
from heterotissue.sources.tile_checks import (
    Tile,
    check_fine,
    check_folders,
    check_growth,
    check_renames,
    check_side,
    check_splits,
    class_folders,
    once,
    warn_of_equal_names,
    without_shared,
)
from heterotissue.sources.tile_files import TILES, list_tiles, refuse_others
from heterotissue.sources.unread import why_unreadable
from shared.contracts.base import Classes, spelling
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

SMALL = 4_000_000
"""Bytes up to which a file is read faster than its remembered hash is looked up."""

LARGEST_REGION = 256
REGION_STEP = 32
"""Default sides of regions are multiples of this, which every network takes; none is smaller."""


@dataclass
class TileTable:
    """A table of tiles in the store, and what was left out.

    Attributes:
        key: for `IngestRequest.tiles`.
        tiles: number of tiles in the table.
        region_size: side of the regions, pixels: that which was asked for, or the largest multiple
            of `REGION_STEP` that fits every tile, at most `LARGEST_REGION`.
        renamed: keys of `label_names` that are names of folders.
        refused: tiles that were left out, and why.
        notes: remarks for the user.
    """

    key: str
    tiles: int
    region_size: int
    renamed: frozenset[str]
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    region_size: int | None = None,
    region_mpp: float | None = None,
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
        label_names: name of a folder → class of its tiles, before the names of the classes; numbers
            and colours, and names of no folder, are left to the masks.
        patient: regular expression or table that tells a tile's patient.
        allow_leakage: whether the slides of a patient may be in two splits.
        replace: whether tiles that the cohort has may be missing now, or of other slides, patients
            or splits.
        region_size: side of the regions in pixels; smaller tiles are refused. None: the largest
            that fits every tile, see `TileTable.region_size`.
        region_mpp: µm per pixel of the regions; None: that of the tiles.

    Raises:
        InputError: `folder` is missing or has no tile with a mask, a pattern fits no tile, the
            tiles of a slide or of a patient are in two splits, only some folders have the name of
            a class, a key of `label_names` is not clear, or the cohort has other tiles.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    region_mpp = region_mpp or mpp
    check_fine(mpp, region_mpp)
    found = Found()
    files = list_tiles(folder, masks, found)
    apart = masks is not None and not folder.resolve().is_relative_to(masks.resolve())
    beside = MaskFolders(folder, *([], []) if apart else (files.tiles, files.others))
    paths = [path for path in files.tiles if path not in beside.masks]
    search = Labels(masks, (path.relative_to(folder) for path in paths))
    refuse_others(found, folder, files, search, beside)
    patients = Patients(patient, paths) if patient else None
    found.notes += patients.unread() if patients else []
    slides = pattern(slide_pattern, "--slide") if slide_pattern else None
    label_names = label_names or {}
    there = {spelling(part) for path in paths for part in path.relative_to(folder).parent.parts}
    check_renames(label_names, there, found)
    folders = class_folders(classes, label_names)
    read: list[Tile] = []
    for path in paths:
        below = path.relative_to(folder)
        try:
            tile = _read(path, below, search, beside, patients, slides, classes, folders, found)
            check_side(tile, mpp, region_size or REGION_STEP, region_mpp, REGION_STEP)
        except InputError as error:
            found.refuse(below, str(error))
        except OSError as error:
            place = Path(os.fsdecode(error.filename or path))
            whose = "" if place == path else f"its mask {shown(place.name)} "
            found.refuse(below, whose + why_unreadable(place, error))
        else:
            read.append(tile)
    tiles = once(found, without_shared(found, read))
    if not tiles:
        reasons = [f"{item.path}: {item.reason}" for item in found.refused] + found.notes
        looked = f"looked for {', '.join(sorted(TILES))} there and in the folders below. Give the"
        raise InputError(
            f"no tile {'is left ' if paths else ''}in {folder}: "
            + (some(reasons, 3) or f"{looked} folder of the tiles")
        )
    check_folders(tiles, classes)
    check_split_folders({tile.below: tile.split for tile in tiles}, found, "tiles")
    rows = _rows(tiles, found, mpp)
    check_splits(rows, allow_leakage)
    table = table_bytes(pa.Table.from_pylist(rows, schema=TILE_COLUMNS))
    key = tiles_key(cohort, sha256(table))
    with storing(store):
        if not replace:
            found.notes = [*check_growth(store, cohort, rows), *found.notes]
        store.put(key, table)
    if region_size is None:
        side = min(round(tile.side * mpp / region_mpp) for tile in tiles)
        region_size = min(LARGEST_REGION, side // REGION_STEP * REGION_STEP)
    used = frozenset(name for name in label_names if spelling(name) in there)
    return TileTable(key, len(tiles), region_size, used, found.refused, _short(found.notes))


def _short(notes: list[str]) -> list[str]:
    """Keep the first few notes, because there may be one for every tile."""
    rest = len(notes) - 10
    return notes if rest <= 0 else [*notes[:10], f"… and {rest} more notes"]


def _read(
    path: Path,
    below: Path,
    search: Labels,
    beside: MaskFolders,
    patients: Patients | None,
    slides: re.Pattern[str] | None,
    classes: Classes,
    folders: Mapping[str, int],
    found: Found,
) -> Tile:
    """Describe one tile. Raises `InputError` or `OSError` if it cannot be used."""
    if reason := unusable(path):
        raise InputError(reason)
    masks = beside.of(path)
    if not masks or search.folder is None:
        masks = [*search.of(path, below, MASKS, LABELED_BY_PNG), *masks]
    if not masks:
        place, stem = shown(search.folder or path.parent), shown(path.stem)
        raise InputError(
            f"has no mask: looked in {place} for {stem}.mask.png, {stem}_mask.png and "
            "similar names" + ("" if search.folder else f" ({_hint(path)})") + search.apart(below)
        )
    if len(masks) > 1 and masks[0].name == masks[1].name:
        raise InputError(
            f"may have any of several masks: {some(map(shown, masks))}. Put masks into the same "
            "subfolders as tiles"
        )
    for mask in masks:
        if reason := unusable(mask):
            raise InputError(f"has a mask, {shown(mask.name)}, that {reason}")
    for file in (path, masks[0]):
        if not is_utf8(str(file.resolve())):
            raise InputError(
                f"has a path that is not valid UTF-8, {shown(file.resolve())}: rename it"
            )
    mask_sha256, *others = map(_hash, masks)
    if others:
        names = some(shown(mask.name) for mask in masks)
        if {*others} != {mask_sha256}:
            raise InputError(
                f"has several masks, which differ: {names}. Keep the right one, and remove or "
                "rename the others"
            )
        found.notes.append(f"{shown(below)} has several masks, which are equal: {names}")
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
    labels = {folders[name] for name in parts & folders.keys()}
    if len(labels) > 1:
        names = some(classes.names[label] for label in sorted(labels))
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
        mask_sha256,
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
