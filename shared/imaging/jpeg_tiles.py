"""JPEG tiles of a TIFF, decoded by libjpeg-turbo alone: OpenSlide's pixels without its detours.

OpenSlide decodes a tile to premultiplied RGBA, composes the window by Cairo, and OpenSlide Python
turns it back; that takes several times as long as the decoding.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile

from shared.arrays import UInt8
from shared.imaging.tiff_facts import TIFF_ERRORS

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
        self._lock = threading.Lock()
        self._cache: OrderedDict[Place, UInt8] = OrderedDict()
        self._cached = 0
        if source.properties.get(openslide.PROPERTY_NAME_VENDOR) not in VENDORS:
            return
        try:
            with tifffile.TiffFile(path, _multifile=False) as tiff:  # noqa: TID251 - in the sandbox
                pages: list[Any] = list(tiff.pages)
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

    def touched(self, level: int, x: float, y: float, width: int, height: int) -> list[Place]:
        """List the tiles that a window needs; its corner is in pixels of the level."""
        own = self._levels[level]
        left, top = int(np.floor(x)), int(np.floor(y))
        right, bottom = left + width + (x > left), top + height + (y > top)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(own.width, right), min(own.height, bottom)
        if x0 >= x1 or y0 >= y1:
            return []
        return [
            (level, column, row)
            for row in range(y0 // own.rows, (y1 - 1) // own.rows + 1)
            for column in range(x0 // own.columns, (x1 - 1) // own.columns + 1)
        ]

    def missing(self, places: Iterable[Place]) -> list[Place]:
        """Return those tiles that are not decoded, each once, in order."""
        with self._lock:
            return [place for place in dict.fromkeys(places) if place not in self._cache]

    def tile(self, place: Place) -> UInt8:
        """Return a tile, uint8 RGB (rows, columns, 3); decode it unless that was done.

        Raises:
            ValueError: the tile is damaged.
        """
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        tile = self._decode(*place)
        with self._lock:
            if place not in self._cache:
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
        for place in self.touched(level, left, top, out.shape[1], out.shape[0]):
            tile, at_x, at_y = self.tile(place), place[1] * own.columns, place[2] * own.rows
            x0, y0 = max(left, at_x, 0), max(top, at_y, 0)
            x1 = min(right, at_x + own.columns, own.width)
            y1 = min(bottom, at_y + own.rows, own.height)
            out[y0 - top : y1 - top, x0 - left : x1 - left] = tile[
                y0 - at_y : y1 - at_y, x0 - at_x : x1 - at_x
            ]

    def _decode(self, level: int, column: int, row: int) -> UInt8:
        own = self._levels[level]
        number = row * own.across + column
        data = os.pread(self._file, own.counts[number], own.offsets[number])
        try:
            tile = imagecodecs.jpeg8_decode(
                data, tables=own.tables, colorspace=own.space, outcolorspace="RGB"
            )
        except (imagecodecs.Jpeg8Error, OSError) as error:
            raise ValueError(str(error)) from error
        if tile.shape != (own.rows, own.columns, 3):
            raise ValueError("a tile has another size than the file states")
        return np.asarray(tile, np.uint8)


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
