"""What the tiles of a cohort must be together: their folders, splits, masks and resolution."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterotissue.sources.records import Found, shown, some
from shared.contracts.base import Classes, Split
from shared.contracts.ingest import check_divided
from shared.errors import InputError, quoted
from shared.imaging.region_sets import load_region_set
from shared.imaging.slide import MAX_UPSAMPLING
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store
from shared.storage.formats import read_table


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


def check_side(tile: Tile, mpp: float, region: tuple[int, float] | None) -> None:
    """Raise `InputError` if a tile is smaller than a region."""
    size, region_mpp = region or (0, mpp)
    side = round(tile.side * mpp / region_mpp)
    if side < size:
        raise InputError(
            f"has a side of {side} px at {region_mpp:g} µm/px, smaller than a region of {size} px: "
            "take smaller regions (--region-size), or a smaller --region-mpp"
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


def check_growth(store: Store, cohort: str, tiles: set[str], mpp: float) -> None:
    """Raise `InputError` if a cohort has tiles that are not among these, or at another resolution.

    Args:
        store, cohort: where the cohort is, if there is one.
        tiles: SHA-256 of each tile.
        mpp: µm per pixel of the tiles.
    """
    try:
        before = load_region_set(store, cohort)
        columns = ["image", "image_sha256", "mpp"]
        rows = read_table(store, before.tiles, columns).to_pylist() if before.tiles else []
    except (ObjectNotFoundError, DamagedObjectError):
        return
    if gone := [row["image"] for row in rows if row["image_sha256"] not in tiles]:
        raise InputError(
            f"cohort {quoted(cohort)} has {len(gone)} tiles that are not among these, or are "
            f"changed: {some((Path(image).name for image in gone), 3)}. Choose another name, or "
            "replace the cohort with --replace"
        )
    if other := {row["mpp"] for row in rows} - {mpp}:
        raise InputError(
            f"the tiles of cohort {quoted(cohort)} were taken at "
            f"{some(f'{x:g}' for x in other)} µm/px, not at {mpp:g}: choose another name, "
            "or replace the cohort with --replace"
        )


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


def without_shared(found: Found, tiles: dict[str, Tile]) -> dict[str, Tile]:
    """Refuse tiles that would share one mask, because it is of only one of them."""
    owners: dict[Path, list[Tile]] = defaultdict(list)
    for tile in tiles.values():
        owners[tile.mask].append(tile)
    for mask, sharing in owners.items():
        for tile in sharing if len(sharing) > 1 else ():
            others = some((shown(other.below) for other in sharing if other is not tile), 3)
            found.refuse(
                tile.below,
                f"its mask {shown(mask.name)} may be that of {others} too: name it "
                f"{shown(tile.path.name)}.png and so on, or put masks into the same subfolders as "
                "tiles",
            )
    return {sha: tile for sha, tile in tiles.items() if len(owners[tile.mask]) == 1}
