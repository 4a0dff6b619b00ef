"""Slides on a server, of which only the tiles that are looked at are fetched."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import tifffile

from shared.errors import InputError
from shared.imaging.marks import parse_mark
from shared.imaging.sandboxed_slide import SandboxedSlide, SlideReader
from shared.imaging.tiff import TiffSlide
from shared.imaging.tiff_facts import TIFF_ERRORS, VENDORS, tiff_xmp
from shared.sandbox.files import Ranges
from shared.storage import Store

SUFFIXES = {".svs", ".tif", ".tiff"}

JPEG = 7
MIN_SIDE, MAX_TILE = 128, 4 << 20
"""Smallest side of tiles that are fetched by themselves, and pixels of the largest."""

MAX_STEP, MAX_COARSEST = 8, 16 << 20
"""Greatest ratio of the sides of two levels, and pixels of the coarsest level: a view of a slide
takes a few tiles then."""


class RangedReader(SlideReader):
    """Reads a TIFF of JPEG tiles inside the sandbox, of which it is given what it asks for."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        _check(file, name)
        file.seek(0)
        mark = parse_mark(tiff_xmp(file))
        file.seek(0)
        super().__init__(Path(name), TiffSlide(Path(name), file), mark)


def _check(file: BinaryIO, name: str) -> None:
    """Raise `InputError` if OpenSlide may show another picture of the file than its tiles do."""
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:  # noqa: TID251 - in the sandbox
            first = tiff.pages.first
            maker = {flag for flag in VENDORS if getattr(first, flag)} - {"is_svs"}
            turned = first.tags.get(274)
            levels = max(tiff.series, key=lambda s: s.shape[0] * s.shape[1]).levels
            pages: list[Any] = [cast(Any, level.pages[0]).keyframe for level in levels]
            plain = all(
                page.is_tiled
                and page.compression == JPEG
                and page.samplesperpixel == 3
                and min(page.tilewidth, page.tilelength) >= MIN_SIDE
                and page.tilewidth * page.tilelength <= MAX_TILE
                and all(page.databytecounts)
                for page in pages
            )
            widths = [page.imagewidth for page in pages]
            coarsest = pages[-1].imagewidth * pages[-1].imagelength <= MAX_COARSEST
            steps = all(a <= MAX_STEP * b for a, b in pairwise(widths))
            pyramid = plain and coarsest and steps
            fits = pyramid and not maker and not tiff.is_ome and (not turned or turned.value == 1)
    except TIFF_ERRORS as error:
        raise InputError(f"{name} cannot be read in pieces: {error}") from error
    if not fits:
        raise InputError(f"{name} is no pyramid of JPEG tiles")


def open_ranged(store: Store, source: str) -> SandboxedSlide | None:
    """Open a slide of a store on a server without fetching it.

    Args:
        store: holds the slide.
        source: key of its file, which is one of several if it is not a TIFF.

    Returns:
        The slide; None if the store has local files, or the slide must be fetched whole.
    """
    key = Path(source)
    if not store.fetches() or key.is_absolute() or key.suffix.lower() not in SUFFIXES:
        return None
    ranges = Ranges(store.size(source), lambda start, size: store.read_range(source, start, size))
    try:
        return SandboxedSlide(key, [], ranges)
    except InputError:
        return None
