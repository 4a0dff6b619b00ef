"""Which directories of a TIFF are levels of its main image: those that its reader reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import tifffile

from shared.errors import InputError
from shared.imaging.redaction.directories import NDPI_FLAG, Directories, Directory
from shared.imaging.redaction.xml import parsed
from shared.imaging.tiff import main_series
from shared.imaging.tiff_facts import ome_facts, resolution_of

ROUNDING = 2
"""Pixels by which a level's sides may differ from those of level 0 / a whole number."""

ASIDE = re.compile(rb"(?i)\b(?:label|macro|barcode|overview|thumbnail|preview)")
ASIDE_NAME = re.compile(
    r"(?i)\s*(?:slide[ _-]?)?(?:label|macro|barcode|overview|thumbnail|preview)(?:[ _-]?image)?\s*"
)
ASIDE_KIND = re.compile(rb"<ImageType>\s*(?:Label|Overview|Macro|Thumbnail)", re.IGNORECASE)

_LENS, _FOCUS, _XML = 65421, 65424, 700
_TILE_WIDTH, _REDUCED, _SOFTWARE, _DESCRIPTION, _PAGE_NAME = 322, 254, 305, 270, 285
_LEICA = b"http://www.leica-microsystems.com/scn/2010/"


@dataclass(frozen=True)
class Reading:
    """What a reader takes from a TIFF.

    Attributes:
        kind: maker of the scanner, as OpenSlide tells it; 'ome' and 'tiff': none.
        levels: offsets of the directories whose pixels are read.
        facts: what else is read of a TIFF of no scanner.
        sizes: width and height of each level, pixels, if their pixels must tell that they are
            levels.
    """

    kind: str
    levels: frozenset[int]
    facts: tuple[Any, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


def reading(file: BinaryIO, path: Path) -> Reading:
    """Find the levels of the main image.

    Args:
        file: the open file.
        path: its name.

    Raises:
        InputError: it is not certain which they are.
        TIFF_ERRORS: the file is damaged.
    """
    tiff = Directories(file)
    kind = _kind(tiff)
    facts: tuple[Any, ...]
    if kind in _SCANNERS:
        levels, facts = _SCANNERS[kind](tiff), (False,)
    else:
        levels, facts = _of_any_program(tiff, file, path)
        if facts[0]:
            kind = "ome"
    if not levels:
        raise InputError("it has no level")
    pages = [page for page in (*tiff.pages, *tiff.nested) if page.offset in levels]
    if kind not in {"aperio", "tiff", "ome"}:
        return Reading(kind, frozenset(levels), facts)
    for page in pages:
        _check_level(tiff, page, pages, kind)
    sizes = tuple(tiff.size(page) for page in pages)
    return Reading(kind, frozenset(levels), facts, sizes)


def _kind(tiff: Directories) -> str:
    first = tiff.pages[0]
    tiled = _TILE_WIDTH in first.entries
    text, program = tiff.text(first, _DESCRIPTION), tiff.text(first, _SOFTWARE)
    if NDPI_FLAG in first.entries:
        return "hamamatsu"
    if tiled and text.startswith(b"Aperio"):
        return "aperio"
    if tiled and _LEICA in text:
        return "leica"
    if b"iScan" in tiff.text(first, _XML):
        return "ventana"
    if program.startswith(b"Philips") and b"DPUfsImport" in text:
        return "philips"
    if program.startswith(b"MedScan"):
        raise InputError("they are not known in slides of Trestle")
    return "tiff"


def _tiled(tiff: Directories) -> set[int]:
    return {page.offset for page in tiff.pages if _TILE_WIDTH in page.entries}


def _hamamatsu(tiff: Directories) -> set[int]:
    return {
        page.offset
        for page in tiff.pages
        if tiff.number(page, _LENS) > 0 and tiff.number(page, _FOCUS) == 0
    }


def _philips(tiff: Directories) -> set[int]:
    found = _tiled(tiff)
    spacing = ".//Attribute[@Name='DICOM_PIXEL_SPACING']"
    scans = [
        item
        for item in parsed(tiff.text(tiff.pages[0], _DESCRIPTION)).iter("DataObject")
        if any((part.text or "") == "WSI" for part in item.findall("Attribute"))
    ]
    if len(scans) != 1:
        raise InputError("its XML does not tell its image from its label")
    stated = scans[0].findall(f".//DataObject[@ObjectType='PixelDataRepresentation']{spacing[1:]}")
    if len(stated) != len(found):
        raise InputError(f"it has {len(found)} tiled images, but {len(stated)} levels")
    return found


def _ventana(tiff: Directories) -> set[int]:
    return {page.offset for page in tiff.pages if b"level=" in tiff.text(page, _DESCRIPTION)}


def _leica(tiff: Directories) -> set[int]:
    """Return the levels of the images that do not show the whole glass, as the macro image does."""
    found: set[int] = set()
    root = parsed(tiff.text(tiff.pages[0], _DESCRIPTION))
    space = root.tag.rpartition("}")[0] + "}"
    for collection in root.findall(f"{space}collection"):
        for image in collection.findall(f"{space}image"):
            view = image.find(f"{space}view")
            light = image.findtext(f".//{space}illuminationSource")
            whole = view is None or (
                all(view.get(key) == collection.get(key) for key in ("sizeX", "sizeY"))
                and view.get("offsetX") == view.get("offsetY") == "0"
            )
            if whole or light != "brightfield":
                continue
            parts = image.findall(f"{space}pixels/{space}dimension")
            found |= {int(part.attrib["ifd"]) for part in parts if part.get("z", "0") == "0"}
    return {tiff.pages[number].offset for number in found}


_SCANNERS = {
    "aperio": _tiled, "hamamatsu": _hamamatsu, "philips": _philips, "ventana": _ventana,
    "leica": _leica,
}  # fmt: skip


def _of_any_program(
    tiff: Directories, file: BinaryIO, path: Path
) -> tuple[set[int], tuple[Any, ...]]:
    """Return the levels that tifffile or OpenSlide finds, and what else `TiffSlide` reads."""
    file.seek(0)
    with tifffile.TiffFile(file, name=path.name, _multifile=False) as opened:
        ome, nested = bool(opened.is_ome), bool(opened.pages.first.subifds)
        series = main_series(opened)
        if ome and ASIDE_NAME.fullmatch(series.name):
            raise InputError(f"its largest image is called {series.name!r}")
        shapes = [(level.axes, level.shape) for level in series.levels]
        found = {int(page.offset) for level in series.levels for page in level.pages if page}
        size = (series.keyframe.imagewidth, series.keyframe.imagelength)
        stated = ome_facts(str(opened.ome_metadata), size)[:2] if ome else None
        facts = (ome, nested, tuple(map(str, shapes)), resolution_of(opened), stated)
    if _TILE_WIDTH in tiff.pages[0].entries and not ome and not nested:
        if tiff.pages[0].offset not in found:
            raise InputError("its largest image is not the first")
        found |= _tiled(tiff) & {
            page.offset for page in tiff.pages if tiff.number(page, _REDUCED) & 1
        }
    return found, facts


def _check_level(tiff: Directories, page: Directory, levels: list[Directory], kind: str) -> None:
    """Raise `InputError` if an image that is read as a level may be a label or a macro image."""
    text = tiff.text(page, _DESCRIPTION)
    head = text.partition(b"|")[0] if not text.lstrip().startswith(b"<") else b""
    if (
        ASIDE.search(head)
        or ASIDE.search(tiff.text(page, _PAGE_NAME))
        or (kind != "ome" and ASIDE_KIND.search(text))
    ):
        raise InputError("its label or macro image is stored as a level")
    sizes = [tiff.size(item) for item in levels]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    own = tiff.size(page)
    factor = max(1, round(width / max(1, own[0])), round(height / max(1, own[1])))
    near = min(factor, round(width / max(1, own[0])) or 1)
    if not any(
        abs(own[0] - width / by) <= ROUNDING and abs(own[1] - height / by) <= ROUNDING
        for by in {factor, near}
    ):
        raise InputError(
            f"it has an image of {own[0]}×{own[1]} px among the levels of {width}×{height} px, "
            "which may be its label"
        )
