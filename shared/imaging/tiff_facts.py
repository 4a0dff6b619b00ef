"""What a TIFF states: whether it is whole, its maker, resolution and objective."""

from __future__ import annotations

import logging
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
import tifffile

from shared.errors import InputError

# What is wrong with a file becomes an InputError; tifffile would print it as well.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

VENDORS = {
    "is_svs": "Aperio", "is_ndpi": "Hamamatsu", "is_scn": "Leica", "is_bif": "Ventana",
    "is_philips": "Philips",
}  # fmt: skip
"""tifffile's flag → maker whose marks a TIFF bears."""

UNITS = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0,
    "microns": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "in": 25400.0, "inch": 25400.0,
}  # fmt: skip
"""Unit of length, in OME-XML or of ImageJ → µm."""

ASIDES = re.compile(r"(?i)label|macro|overview|thumb|preview|slide ?image")
"""Words in the names of an OME-TIFF's images that are no scenes."""

XMP = 700
"""Tag that holds an XMP packet."""

RESOLUTION_UNITS = {2: 25400.0, 3: 1e4}
"""Value of the tag ResolutionUnit → µm; 1 means that the numbers have no unit."""

MAX_PAGES = 10_000
"""Largest number of directories of a TIFF; OME-TIFFs of many planes have thousands."""

MAX_TILE_PIXELS = 1 << 26
"""Largest tile of a TIFF, pixels. OpenSlide takes memory for a whole tile before it reads one."""

TIFF_ERRORS = (
    tifffile.TiffFileError, OSError, RuntimeError, ValueError, TypeError, IndexError, KeyError,
    AttributeError, ZeroDivisionError, MemoryError, struct.error, ParseError,
)  # fmt: skip
"""What tifffile and its codecs raise for damaged files."""


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins as TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def tiff_size(path: Path) -> tuple[int, int]:
    """Return the width and height that a TIFF's first page states.

    Raises:
        InputError: the file is no TIFF, or damaged.
    """
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            page = tiff.pages.first
            return int(page.imagewidth), int(page.imagelength)
    except TIFF_ERRORS as error:
        raise InputError(f"{path.name} cannot be read as an image: is it damaged?") from error


def tiff_xmp(file: Path | BinaryIO) -> bytes:
    """Return the XMP packet of a TIFF's first page; nothing if it has none.

    Raises:
        InputError: the file is no TIFF, or damaged.
    """
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            value = tiff.pages.first.tags.valueof(XMP, default=b"")
            return value.encode() if isinstance(value, str) else bytes(value)
    except TIFF_ERRORS as error:
        raise InputError("the XMP of a TIFF cannot be read: is it damaged?") from error


@dataclass(frozen=True)
class TiffFacts:
    """What a TIFF is, as far as it decides on the reader.

    Attributes:
        maker: maker of the scanner whose marks the file bears, such as Aperio; None: no marks.
        nested: whether its smaller levels lie in SubIFDs, or it is an OME-TIFF.
        size: width and height of its first image, pixels.
        largest: width and height of its largest image.
        samples: type of that image's samples, such as uint8.
        orientation: how it is turned; 1: it is upright.
        alike: number of images of that size, which are channels or planes if there are several.
        spare: whether pixels have a sample more than their colour that is not said to be opacity.
    """

    maker: str | None
    nested: bool
    size: tuple[int, int]
    largest: tuple[int, int]
    samples: str
    orientation: int = 1
    alike: int = 1
    spare: bool = False

    def check_single(self, path: Path) -> None:
        """Raise `InputError` if it holds several images of one size."""
        if self.alike > 1:
            width, height = self.size
            raise InputError(
                f"{path.name} holds {self.alike} images of {width}×{height} px: channels of "
                "fluorescence, or planes of focus, of which only the first would be read. Export "
                "one RGB image of the tissue"
            )

    def check_samples(self, path: Path) -> None:
        """Raise `InputError` if the samples are not unsigned integers of 8 or 16 bits."""
        if self.samples not in {"uint8", "uint16"}:
            raise InputError(
                f"{path.name} has {self.samples} samples, of which it is not known what is black "
                "and what is white: scale them to 0…255, and save them as a TIFF with 8 bits per "
                "channel"
            )


def inspect(path: Path) -> TiffFacts:
    """Look at a TIFF's directories.

    Raises:
        InputError: the file ends before its last directory, or before its pixels do.
    """
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            pages = pages_of(tiff)
            tile = max((p.tilewidth * p.tilelength for p in map(_keyframe, pages)), default=0)
            nested = [part for page in pages for part in (getattr(page, "pages", None) or ())]
            ends = [end for page in (*pages, *nested) for end in (_end(tiff, page), _pixels(page))]
            complete = bool(pages) and _next(tiff, pages[-1]) == 0 and max(ends) <= size
            first = tiff.pages.first
            maker = next((name for flag, name in VENDORS.items() if getattr(first, flag)), None)
            turned = first.tags.get(274)
            orientation = int(turned.value) if turned is not None else 1
            facts = TiffFacts(
                maker,
                bool(first.subifds or tiff.is_ome),
                (first.imagewidth, first.imagelength),
                max(
                    ((page.imagewidth, page.imagelength) for page in map(_keyframe, pages)),
                    key=math.prod,
                ),
                str(first.dtype),
                orientation,
                sum(
                    (page.imagewidth, page.imagelength) == (first.imagewidth, first.imagelength)
                    for page in map(_keyframe, pages)
                ),
                first.samplesperpixel in {2, 4}
                and first.photometric in {0, 1, 2}
                and not {1, 2} & {int(kind) for kind in first.extrasamples[:1]},
            )
    except TIFF_ERRORS:
        complete = False
    if complete and tile > MAX_TILE_PIXELS:
        raise InputError(
            f"{path.name} has tiles of {tile >> 20} megapixels; at most {MAX_TILE_PIXELS >> 20} "
            "are decoded at once: make it a tiled TIFF (vips tiffsave --tile --pyramid)"
        )
    if not complete:
        raise InputError(
            f"{path.name} is damaged or incomplete: the file ends before its pixels do, or its "
            "directories cannot be read. Copy it again from its source"
        )
    return facts


def pages_of(tiff: tifffile.TiffFile) -> list[Any]:
    """Return the pages. Raises `ValueError` if they are a ring, or more than `MAX_PAGES`."""
    pages: list[Any] = []
    seen: set[int] = set()
    for page in tiff.pages:
        if page.offset in seen or len(pages) == MAX_PAGES:
            raise ValueError("its directories have no end")
        seen.add(page.offset)
        pages.append(page)
    return pages


def _keyframe(page: Any) -> Any:
    """Return the page that states the layout of a page."""
    return page.keyframe


def _tags(tiff: tifffile.TiffFile, page: Any) -> list[bytes]:
    """Read the entries of a page's directory, and leave the file at the next one's offset."""
    form, file = tiff.tiff, tiff.filehandle
    file.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    if not count:
        raise ValueError("an empty directory")
    return [file.read(form.tagsize) for _ in range(count)]


def _next(tiff: tifffile.TiffFile, page: Any) -> int:
    """Return the offset of the directory that follows a page's; 0: the page is the last."""
    _tags(tiff, page)
    form = tiff.tiff
    return int(struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0])


def _end(tiff: tifffile.TiffFile, page: Any) -> int:
    """Return the offset of the last byte of the values of a page's tags."""
    form, last = tiff.tiff, 0
    if tiff.is_ndpi:
        return last  # its offsets have more bits than a tag holds
    for entry in _tags(tiff, page):
        _, kind = struct.unpack_from(form.tagformat1, entry)
        count = struct.unpack_from(form.offsetformat, entry, 4)[0]
        length = count * struct.calcsize(tifffile.TIFF.DATA_FORMATS.get(kind, "B"))
        if length > form.tagoffsetthreshold:
            at = struct.unpack_from(form.offsetformat, entry, 4 + form.offsetsize)[0]
            last = max(last, at + length)
    return last


def _pixels(page: Any) -> int:
    """Return the offset of the last byte of a page's pixels."""
    offsets = np.asarray(page.dataoffsets, np.uint64)
    counts = np.asarray(page.databytecounts, np.uint64)
    return int((offsets + counts).max()) if len(offsets) else 0


def resolution_of(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Return µm per pixel along x and y by the resolution tags; None if they have no unit."""
    page = tiff.pages.first
    unit = RESOLUTION_UNITS.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    if unit is None and tiff.is_imagej:
        unit = UNITS.get(str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ"))
    tags = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if unit is None or None in tags:
        return None
    counts = [top / bottom if bottom else 0.0 for top, bottom in tags]
    return (unit / counts[0], unit / counts[1]) if min(counts) > 0 else None


class OmeFacts(NamedTuple):
    """What OME-XML says of an image.

    Attributes:
        spacing: µm per pixel along x and y; None if not stated.
        objective: nominal magnification; None if not stated.
        names: name of each channel; empty if not stated.
        colors: colour in which each channel is shown, RRGGBB.
    """

    spacing: tuple[float, float] | None = None
    objective: str | None = None
    names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()


def ome_facts(xml: str, size: tuple[int, int]) -> OmeFacts:
    """Read what OME-XML says of the image of `size`."""
    root = tifffile.xml2dict(xml).get("OME", {})
    for image in _listed(root, "Image"):
        pixels = image.get("Pixels", {})
        if (pixels.get("SizeX"), pixels.get("SizeY")) != size:
            continue
        lengths = [
            float(pixels.get(f"PhysicalSize{axis}") or 0)
            * UNITS.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")), 0.0)
            for axis in "XY"
        ]
        wanted = image.get("ObjectiveSettings", {}).get("ID")
        powers = [
            str(lens["NominalMagnification"])
            for instrument in _listed(root, "Instrument")
            for lens in _listed(instrument, "Objective")
            if wanted in (None, lens.get("ID")) and lens.get("NominalMagnification")
        ]
        channels = _listed(pixels, "Channel")
        return OmeFacts(
            (lengths[0], lengths[1]) if min(lengths) > 0 else None,
            powers[0] if powers else None,
            tuple(str(channel.get("Name", "")) for channel in channels),
            tuple(_hexadecimal(channel.get("Color")) for channel in channels),
        )
    return OmeFacts()


def _hexadecimal(color: Any) -> str:
    """Return the colour of OME-XML, a signed RGBA number, as RRGGBB; empty if there is none."""
    return f"{(color & 0xFFFFFFFF) >> 8:06X}" if isinstance(color, int) else ""


def _listed(element: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the children of an element by one name, of which there may be one or none."""
    found = element.get(name, [])
    return found if isinstance(found, list) else [found]
