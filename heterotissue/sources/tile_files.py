"""The files of a folder of tiles: which are tiles, which are masks, and which are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from heterotissue.sources.annotations import JPEGS, LABELED_BY_PNG, MASKS, Labels
from heterotissue.sources.files import SLIDES, UNFINISHED, is_mask, mask_of_slide, walk
from heterotissue.sources.mask_folders import MaskFolders
from heterotissue.sources.records import Found, shown, some
from heterotissue.sources.unread import beginning, why_not_taken, why_unread

TILES = {".png", *JPEGS, ".tif", ".tiff", ".webp", ".bmp"}


@dataclass(frozen=True)
class TileFiles:
    """The files of a folder and of those below it, but for text and other files of no picture.

    Attributes:
        tiles: images whose suffix is one of `TILES`.
        others: files of other suffixes that may be pictures.
        masks: label images by their names, without a tile of `TILES` beside them.
        unfinished: downloads and copies that have not ended.
    """

    tiles: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)


def list_tiles(folder: Path, masks: Path | None, found: Found) -> TileFiles:
    """List the images in a folder and below.

    Where masks have a folder of their own, no name marks a mask in that of the tiles. Where they
    are said to lie in that of the tiles, or in one above, a PNG that has the name of a JPEG or TIFF
    is its mask.

    Args:
        folder: the folder.
        masks: folder of the masks; None: beside the tiles, or in folders beside theirs.
        found: receives folders that cannot be read.
    """
    inside = masks.resolve() if masks else None
    if inside and folder.resolve().is_relative_to(inside):
        inside = None
    files = TileFiles()
    for _, paths in walk(folder, found, inside):
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in UNFINISHED:
                files.unfinished.append(path)
            elif masks and not inside and _is_labels(path):
                continue
            elif not inside and is_mask(path):
                files.masks.extend([] if mask_of_slide(path) else [path])
            elif inside and path.resolve().is_relative_to(inside):
                continue
            elif path.suffix.lower() in TILES:
                files.tiles.append(path)
            elif _may_be_picture(path):
                files.others.append(path)
    return files


def _is_labels(path: Path) -> bool:
    """Say whether a file is a PNG beside a tile of its name, as QuPath exports labels."""
    endings = [ending for suffix in LABELED_BY_PNG for ending in (suffix, suffix.upper())]
    return path.suffix.lower() == ".png" and any(path.with_suffix(e).exists() for e in endings)


def _may_be_picture(path: Path) -> bool:
    if path.suffix.lower() in SLIDES or why_unread(path) or why_not_taken(path):
        return True
    try:
        return b"\0" in beginning(path)  # else it is text
    except OSError:
        return True


def refuse_others(
    found: Found, folder: Path, files: TileFiles, search: Labels, beside: MaskFolders
) -> None:
    """Refuse pictures, and what has a mask, in formats that are not read; note what is skipped.

    Args:
        found: receives them, and the notes.
        folder: the folder that was searched.
        files: what it holds.
        search, beside: find masks.
    """
    masks: set[Path] = set()
    skipped = []
    names = {(path.parent, path.stem) for path in files.tiles}
    for path in files.others:
        below, doubled = path.relative_to(folder), (path.parent, path.stem) in names
        own = [*search.of(path, below, MASKS, LABELED_BY_PNG), *beside.of(path)]
        reason = why_unread(path, "PNG") or why_not_taken(path)
        if path.suffix.lower() in SLIDES:
            reason = "is in a format of slides, not of tiles: save it as PNG, or use htd ingest"
        elif own and not reason and not doubled:
            reason = (
                f"has a mask, {shown(own[0].name)}, but is no picture in a format that is read: "
                "save it as PNG"
            )
        if reason and doubled:
            skipped.append(shown(below))
        elif reason:
            found.refuse(below, reason)
            masks.update(own)
    if skipped:
        found.notes.append(
            f"skipped {len(skipped)} files in formats that are not read, beside tiles of their "
            f"name: {some(skipped)}"
        )
    if unfinished := [shown(path.relative_to(folder)) for path in files.unfinished]:
        found.notes.append(
            f"skipped {len(unfinished)} unfinished or temporary files: {some(unfinished)}"
        )
    if alone := [shown(path.relative_to(folder)) for path in files.masks if path not in masks]:
        found.notes.append(
            f"skipped {len(alone)} images without a tile, which are masks by their names: "
            f"{some(alone)} (give the folder of masks by --masks if they are tiles)"
        )
