"""What the tiles of a cohort must be together: their folders, splits, masks and resolution."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterotissue.sources.records import Found, shown, some
from shared.contracts.base import Classes, Split, spelling
from shared.contracts.ingest import GIVEN_MPP, check_divided
from shared.errors import InputError, quoted
from shared.imaging.mask_values import stated_colors
from shared.imaging.region_sets import load_region_set
from shared.imaging.slide import MAX_UPSAMPLING
from shared.patients import folded
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store
from shared.storage.formats import read_table

COMPARED = ["slide", "patient", "split", "image", "image_sha256", "mask_sha256", "label", "mpp"]
"""Columns of a table of tiles that are compared when a cohort grows."""


@dataclass(frozen=True)
class Tile:
    """A tile with its mask.

    Attributes:
        path: its file.
        below: its path below the folder that was searched.
        mask: file of its mask.
        patient, slide, split: where known.
        label: index of the class that its folder is named after; None: the mask holds indices.
        side: its shorter side, pixels.
        image_sha256, mask_sha256: hashes of the files.
    """

    path: Path
    below: Path
    mask: Path
    patient: str | None
    slide: str | None
    split: Split | None
    label: int | None
    side: int
    image_sha256: str
    mask_sha256: str


def check_fine(mpp: float, region_mpp: float) -> None:
    """Raise `InputError` if tiles are too coarse for regions, as slides may be too."""
    if mpp / region_mpp > MAX_UPSAMPLING:
        raise InputError(
            f"the tiles have {mpp:g} µm/px, too coarse for regions of {region_mpp:g}: take "
            f"--region-mpp {mpp:g} or more, or tiles that are finer"
        )


def check_side(tile: Tile, mpp: float, size: int, region_mpp: float, least: int) -> None:
    """Raise `InputError` if a tile is smaller than a region.

    Args:
        tile: the tile.
        mpp: its µm per pixel.
        size: side of the region, pixels.
        region_mpp: µm per pixel of the region.
        least: the smallest side that a region may have.
    """
    side = round(tile.side * mpp / region_mpp)
    if side >= size:
        return
    remedies = ["smaller regions (--region-size)"] if size > least else []
    finest = max(mpp / MAX_UPSAMPLING, GIVEN_MPP[0])
    if (fitting := math.floor(tile.side * mpp / size * 1000) / 1000) >= finest:
        remedies.append(f"--region-mpp {fitting:g} or less")
    raise InputError(
        f"has a side of {side} px at {region_mpp:g} µm/px, smaller than a region of {size} px: "
        f"take {' or '.join(remedies) or 'larger tiles'}"
    )


def class_folders(classes: Classes, label_names: Mapping[str, str]) -> dict[str, int]:
    """Return the folders that name the class of their tiles: `spelling` of the name → class index.

    Args:
        classes: the classes; a folder of the name of a class is that class.
        label_names: name of a folder → class, which counts before the names of the classes.

    Raises:
        InputError: a folder is given two classes, in two spellings.
    """
    renamed: dict[str, int] = {}
    for name, of in label_names.items():
        label = classes.index(of)
        if renamed.setdefault(spelling(name), label) != label:
            other = classes.names[renamed[spelling(name)]]
            raise InputError(
                f"--rename gives {quoted(name)}, in this or another spelling, to two classes: "
                f"{quoted(other)} and {quoted(of)}. Give it one"
            )
    return {spelling(item.name): item.index for item in classes.items} | renamed


def check_renames(label_names: Mapping[str, str], folders: Set[str], found: Found) -> None:
    """Check that each key of `label_names` means one thing: a folder, a value or a colour.

    Args:
        label_names: what is renamed → class.
        folders: names of the folders of all tiles, as `spelling` writes them.
        found: receives a note on names that mean nothing.

    Raises:
        InputError: a value or a colour is also the name of a folder, or looks like a colour, but
            is none that is read.
    """
    colors = set(stated_colors(dict(label_names)).values())
    for key, of in label_names.items():
        of_masks = key in colors or key.isdecimal()
        if of_masks and spelling(key) in folders:
            raise InputError(
                f"--rename {quoted(f'{key}={of}')} may mean a value of the masks, or the folder "
                f"{quoted(key)} here. For the value, give --set "
                f"{quoted(f'label_names.{key}={of}')} in place of it; for the folder, give the "
                "folder another name"
            )
        if not of_masks and spelling(key) not in folders:
            found.notes.append(
                f"--rename {quoted(key)} is no folder here, no value of masks (a number) and no "
                "colour (such as '#ff8000' or '255,128,0'), so it changes nothing"
            )


def check_folders(tiles: list[Tile], classes: Classes) -> None:
    """Raise `InputError` if the folders of some tiles, but not of all, are named like classes."""
    named = sorted({classes.names[tile.label] for tile in tiles if tile.label is not None})
    others = sorted({shown(tile.below.parent) for tile in tiles if tile.label is None})
    if named and others:
        raise InputError(
            f"the folders of some tiles have the name of a class ({', '.join(named)}), so their "
            f"masks would be that class, but those of others have not ({some(others)}), so their "
            "masks would be class indices: give all folders' names as --classes (now "
            f"{','.join(classes.names[1:])}), or rename the folders that are no classes"
        )


def check_growth(store: Store, cohort: str, rows: list[dict[str, Any]]) -> list[str]:
    """Check that a cohort only grows: its tiles stay, with their slides, patients and splits.

    Slides are compared by the tiles that they hold together, since their names may grow longer.

    Args:
        store, cohort: where the cohort is, if there is one.
        rows: the rows of its table of tiles now.

    Returns:
        Notes on masks and classes that have changed, as annotations may.

    Raises:
        InputError: a tile of the cohort is missing, or has another resolution, slide, patient or
            split.
    """
    try:
        before = load_region_set(store, cohort)
        known = read_table(store, before.tiles, COMPARED).to_pylist() if before.tiles else []
    except (ObjectNotFoundError, DamagedObjectError):
        return []
    now = {row["image_sha256"]: row for row in rows}
    remedy = "choose another name, or replace the cohort with --replace"
    if gone := [row["image"] for row in known if row["image_sha256"] not in now]:
        raise InputError(
            f"cohort {quoted(cohort)} has {len(gone)} tiles that are not among these, or are "
            f"changed: {some((shown(Path(image).name) for image in gone), 3)}: {remedy}"
        )
    pairs = [(row, now[row["image_sha256"]]) for row in known]
    if other := {old["mpp"] for old, new in pairs if old["mpp"] != new["mpp"]}:
        raise InputError(
            f"the tiles of cohort {quoted(cohort)} were taken at "
            f"{some(f'{x:g}' for x in other)} µm/px, not at {rows[0]['mpp']:g}: {remedy}"
        )
    groups = [_together([pair[side] for pair in pairs]) for side in (0, 1)]
    changed = {
        "slide": [p for p in pairs if len({of[p[0]["image_sha256"]] for of in groups}) > 1],
        "patient": [p for p in pairs if len({folded(row["patient"] or "") for row in p}) > 1],
        "split": [p for p in pairs if p[0]["split"] != p[1]["split"]],
    }
    for what, differing in changed.items():
        if differing:
            old, new = next((p for p in differing if p[0][what] != p[1][what]), differing[0])
            raise InputError(
                f"{len(differing)} tiles of cohort {quoted(cohort)} have another {what} now, such "
                f"as {shown(Path(new['image']).name)}: {quoted(new[what] or 'none')} instead of "
                f"{quoted(old[what] or 'none')}, which may change what is trained and tested on: "
                f"{remedy}"
            )
    notes = []
    for column, what in (("mask_sha256", "mask"), ("label", "class by their folders")):
        if others := [new["image"] for old, new in pairs if old[column] != new[column]]:
            notes.append(
                f"{len(others)} tiles of cohort {quoted(cohort)} have another {what} now: "
                f"{some(shown(Path(image).name) for image in others)}"
            )
    return notes


def _together(rows: list[dict[str, Any]]) -> dict[str, frozenset[str]]:
    """Return the image of each tile → the images of all tiles of its slide, as SHA-256."""
    slides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        slides[row["slide"]].add(row["image_sha256"])
    sets = {slide: frozenset(images) for slide, images in slides.items()}
    return {row["image_sha256"]: sets[row["slide"]] for row in rows}


def check_splits(rows: list[dict[str, Any]], allow_leakage: bool) -> None:
    """Raise `InputError` if the splits of the tiles divide a slide or a patient."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["slide"]].add(row["split"] or "none")
    if divided := sorted(slide for slide, parts in splits.items() if len(parts) > 1):
        raise InputError(
            f"tiles of slide {quoted(divided[0])} are in the splits "
            f"{', '.join(sorted(splits[divided[0]]))}: a slide must be in one split, or the "
            "figures will be too good"
        )
    if not allow_leakage:
        try:
            check_divided({row["image"]: (row["patient"], row["split"]) for row in rows})
        except ValueError as error:
            raise InputError(str(error)) from error


def warn_of_equal_names(tiles: list[Tile], found: Found) -> None:
    """Note tiles of one name in two splits, because they may be of one slide."""
    splits = defaultdict(set)
    for tile in tiles:
        if tile.slide is None and tile.patient is None:
            splits[tile.path.stem].add(tile.split)
    doubled = sorted(name for name, parts in splits.items() if len(parts) > 1)
    if doubled:
        found.notes.append(
            f"{len(doubled)} names of tiles are in several splits ({some(doubled)}): if these are "
            "of one slide or patient, give --patient or --slide"
        )


def without_shared(found: Found, tiles: list[Tile]) -> list[Tile]:
    """Refuse different tiles that would share one mask, because it is of only one of them."""
    owners: dict[Path, list[Tile]] = defaultdict(list)
    for tile in tiles:
        owners[tile.mask].append(tile)
    pictures = {mask: {tile.image_sha256 for tile in sharing} for mask, sharing in owners.items()}
    for mask, sharing in owners.items():
        names = {tile.path.name for tile in sharing}
        remedy = f"give each its own, such as {shown(sharing[0].path.name)}_mask.png"
        if len(names) < len(sharing):
            remedy = "put masks into the same subfolders as tiles"
        for tile in sharing if len(pictures[mask]) > 1 else ():
            found.refuse(
                tile.below,
                f"its mask {shown(mask.name)} may be that of any of "
                f"{some((shown(other.below) for other in sharing), 3)}: {remedy}",
            )
    return [tile for tile in tiles if len(pictures[tile.mask]) == 1]


def once(found: Found, tiles: list[Tile]) -> list[Tile]:
    """Take tiles of equal content once; refuse those of which something else differs."""
    first: dict[str, Tile] = {}
    for tile in tiles:
        known = first.setdefault(tile.image_sha256, tile)
        if known is tile:
            continue
        same = f"has the same content as {shown(known.below)}"
        if _said(known) == _said(tile):
            found.notes.append(f"{shown(tile.below)} {same}: taken once")
        else:
            found.refuse(
                tile.below,
                f"{same}, but another mask, class, patient or split: remove the one that is wrong",
            )
    return list(first.values())


def _said(tile: Tile) -> tuple[str, int | None, str | None, Split | None]:
    return tile.mask_sha256, tile.label, tile.patient, tile.split
