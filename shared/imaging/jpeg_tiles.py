"""JPEG tiles of a TIFF, decoded by libjpeg-turbo alone: OpenSlide's pixels without its detours.

OpenSlide decodes a tile to premultiplied RGBA, composes the window by Cairo, and OpenSlide Python
turns it back; that takes several times as long as the decoding.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile

from shared.arrays import UInt8
from shared.imaging.tiff_facts import TIFF_ERRORS, pages_of

VENDORS = {"aperio", "generic-tiff"}
"""Formats whose levels are nothing but a page's tiles, beside each other."""

JPEG, RGB, YCBCR = 7, 2, 6
"""TIFF's numbers of the compression, and of the colour spaces."""

CACHE_BYTES = 512 << 20
"""Decoded tiles that are kept: two rows of tiles of a slide of 300,000 px take less."""


class _Level(NamedTuple):
    """The tiles of a level."""

    width: int
    height: int
    columns: int
    rows: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None
    space: str

    @property
    def across(self) -> int:
        return -(-self.width // self.columns)


MAX_SPARE = 256
"""Tiles whose memory waits for its next use."""

Place = tuple[int, int, int]
"""Level, column and row of a tile."""


class JpegTiles:
    """The JPEG tiles of an open TIFF. Threads may share it.

    Args:
        path: the file, which OpenSlide has opened.
        source: OpenSlide's slide.

    Attributes:
        levels: numbers of the levels that are read.
    """

    def __init__(self, path: Path, source: openslide.AbstractSlide) -> None:
        self._levels: dict[int, _Level] = {}
        self._changed = threading.Condition()
        self._decoding: set[Place] = set()
        self._cache: OrderedDict[Place, UInt8] = OrderedDict()
        self._cached = 0
        self._spare: list[UInt8] = []
        if source.properties.get(openslide.PROPERTY_NAME_VENDOR) not in VENDORS:
            return
        try:
            with tifffile.TiffFile(path, _multifile=False) as tiff:  # noqa: TID251 - in the sandbox
                pages = pages_of(tiff)
                for page in pages:
                    level = _level(page.keyframe if page.is_tiled else None, page)
                    size = (page.imagewidth, page.imagelength)
                    if level is not None and size in source.level_dimensions:
                        self._levels.setdefault(source.level_dimensions.index(size), level)
        except TIFF_ERRORS:
            self._levels.clear()
            return
        if self._levels:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def levels(self) -> set[int]:
        return set(self._levels)

    def drop_above(self, level: int, y: float) -> None:
        """Forget the tiles that end above a row of a level's pixels, and use their memory again.

        Fresh memory costs a tenth of the decoding. No other thread may read meanwhile.
        """
        top = int(y // self._levels[level].rows)
        for place in [place for place in self._cache if place[0] != level or place[2] < top]:
            tile = self._cache.pop(place)
            self._cached -= tile.nbytes
            if len(self._spare) < MAX_SPARE:
                self._spare.append(tile)

    def tile(self, place: Place) -> UInt8:
        """Return a tile, uint8 RGB (rows, columns, 3); decode it unless some thread does.

        Raises:
            ValueError: the tile is damaged.
        """
        with self._changed:
            while place in self._decoding:
                self._changed.wait()
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
            self._decoding.add(place)
            spare = self._spare.pop() if self._spare else None
        tile = None
        try:
            tile = self._decode(*place, spare)
        finally:
            with self._changed:
                self._decoding.discard(place)
                self._changed.notify_all()
                if tile is not None:
                    self._cache[place] = tile
                    self._cached += tile.nbytes
                while self._cached > CACHE_BYTES and len(self._cache) > 1:
                    self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def read(self, level: int, x: float, y: float, out: UInt8) -> None:
        """Read a window of a level. What lies outside of the level is white.

        At whole pixels it is what OpenSlide reads, composed on white. Between pixels both
        interpolate linearly, and differ by 3 grey levels at most.

        Args:
            level: the level.
            x, y: upper left corner, pixels of the level.
            out: uint8 RGB (height, width, 3), which is filled.

        Raises:
            ValueError: a tile is damaged.
        """
        height, width = out.shape[:2]
        left, top = int(np.floor(x)), int(np.floor(y))
        if (left, top) == (x, y):
            self._window(level, left, top, out)
            return
        wide = np.empty((height + 1, width + 1, 3), np.uint8)
        self._window(level, left, top, wide)
        centre = (x - left + (width - 1) / 2, y - top + (height - 1) / 2)
        out[:] = cv2.getRectSubPix(wide, (width, height), centre)

    def _window(self, level: int, left: int, top: int, out: UInt8) -> None:
        own = self._levels[level]
        right, bottom = left + out.shape[1], top + out.shape[0]
        if left < 0 or top < 0 or right > own.width or bottom > own.height:
            out[:] = 255
        left_in, top_in = max(0, left), max(0, top)
        right, bottom = min(own.width, right), min(own.height, bottom)
        for row in range(top_in // own.rows, -(-bottom // own.rows)):
            for column in range(left_in // own.columns, -(-right // own.columns)):
                tile, at_x, at_y = (
                    self.tile((level, column, row)),
                    column * own.columns,
                    row * own.rows,
                )
                x0, y0 = max(left_in, at_x), max(top_in, at_y)
                x1, y1 = min(right, at_x + own.columns), min(bottom, at_y + own.rows)
                if x0 < x1 and y0 < y1:
                    out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                        y0 - at_y : y1 - at_y, x0 - at_x : x1 - at_x
                    ]

    def _decode(self, level: int, column: int, row: int, spare: UInt8 | None) -> UInt8:
        own = self._levels[level]
        number = row * own.across + column
        data = os.pread(self._file, own.counts[number], own.offsets[number])
        shape = (own.rows, own.columns, 3)
        out = spare if spare is not None and spare.shape == shape else np.empty(shape, np.uint8)
        try:
            imagecodecs.jpeg8_decode(
                data, tables=own.tables, colorspace=own.space, outcolorspace="RGB", out=out
            )
        except (imagecodecs.Jpeg8Error, OSError) as error:
            raise ValueError(str(error)) from error
        return out


def _level(key: Any, page: Any) -> _Level | None:
    """Return the tiles of a page; None: they are not all there, or no 8-bit RGB as JPEG."""
    if key is None or key.compression != JPEG or key.photometric not in {RGB, YCBCR}:
        return None
    if key.samplesperpixel != 3 or key.bitspersample != 8 or key.planarconfig != 1:
        return None
    level = _Level(
        page.imagewidth, page.imagelength, key.tilewidth, key.tilelength,
        tuple(page.dataoffsets), tuple(page.databytecounts), page.jpegtables,
        "YCBCR" if key.photometric == YCBCR else "RGB",
    )  # fmt: skip
    whole = level.across * -(-level.height // level.rows)
    return level if len(level.counts) == whole and all(level.counts) else None
