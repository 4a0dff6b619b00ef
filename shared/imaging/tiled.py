"""Slides that the project reads tile by tile, with the interface of OpenSlide."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openslide
from PIL import Image

from shared.arrays import UInt8
from shared.imaging.leveled import LeveledSlide

CACHE_BYTES = 128 << 20
"""Decoded tiles that an open slide keeps."""


class Level(NamedTuple):
    """The size of a level, and of the tiles that are read at once, pixels."""

    width: int
    height: int
    columns: int
    rows: int


class TiledSlide(LeveledSlide):
    """A slide with the interface of OpenSlide, read by a library tile by tile.

    Pixels without data are transparent.

    Args:
        vendor: name of the format.
        levels: the levels, the largest first.
        mpp: µm per pixel of level 0 along x and y; None: not stated.
        objective: nominal magnification; None: not stated.
    """

    def __init__(
        self,
        vendor: str,
        levels: Sequence[Level],
        mpp: tuple[float, float] | None = None,
        objective: str | None = None,
    ) -> None:
        super().__init__()
        self._levels = levels
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], UInt8 | None] = OrderedDict()
        self._cached = 0
        self._properties = {openslide.PROPERTY_NAME_VENDOR: vendor}
        for number, level in enumerate(levels):
            self._properties[f"openslide.level[{number}].tile-width"] = str(level.columns)
            self._properties[f"openslide.level[{number}].tile-height"] = str(level.rows)
        if mpp is not None:
            self._properties[openslide.PROPERTY_NAME_MPP_X] = repr(mpp[0])
            self._properties[openslide.PROPERTY_NAME_MPP_Y] = repr(mpp[1])
        if objective is not None:
            self._properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = objective

    @abstractmethod
    def read_tile(self, level: int, column: int, row: int) -> UInt8 | None:
        """Decode a tile, uint8 (height, width, channels), cut at the level's edges or not.

        Returns:
            The tile; None if the file holds no data there.
        """

    def rgba(self, level: int, piece: UInt8) -> UInt8:
        """Turn a part of a tile, uint8 RGB or RGBA, into uint8 RGBA (height, width, 4)."""
        return with_alpha(piece[..., :3], piece[..., 3] if piece.shape[2] == 4 else None)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level."""
        return tuple((level.width, level.height) for level in self._levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        width, height = self.dimensions
        return tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)

    @property
    def properties(self) -> Mapping[str, str]:
        """Vendor, resolution, objective and tile sizes, under OpenSlide's names."""
        return self._properties

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a window of a level, with its corner in level-0 pixels: RGBA.

        Raises:
            openslide.OpenSlideError: the file is damaged in this place.
        """
        part, scale = self._levels[level], self.level_downsamples[level]
        left, top = int(location[0] // scale), int(location[1] // scale)
        out = np.zeros((size[1], size[0], 4), np.uint8)
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(part.width, left + size[0]), min(part.height, top + size[1])
        if x0 < x1 and y0 < y1:
            for row in range(y0 // part.rows, (y1 - 1) // part.rows + 1):
                for column in range(x0 // part.columns, (x1 - 1) // part.columns + 1):
                    tile = self._tile(level, column, row)
                    if tile is None:
                        continue
                    at_x, at_y = column * part.columns, row * part.rows
                    u0, v0 = max(x0, at_x), max(y0, at_y)
                    u1 = min(x1, at_x + tile.shape[1])
                    v1 = min(y1, at_y + tile.shape[0])
                    piece = tile[v0 - at_y : v1 - at_y, u0 - at_x : u1 - at_x]
                    out[v0 - top : v1 - top, u0 - left : u1 - left] = self.rgba(level, piece)
        return Image.fromarray(out)

    def _tile(self, level: int, column: int, row: int) -> UInt8 | None:
        with self._lock:
            at = (level, column, row)
            if at in self._cache:
                self._cache.move_to_end(at)
                return self._cache[at]
            try:
                tile = self.read_tile(*at)
            # The libraries and their codecs raise errors of many kinds for damaged data.
            except Exception as error:
                raise openslide.OpenSlideError(str(error) or type(error).__name__) from error
            self._cache[at] = tile
            self._cached += 0 if tile is None else tile.nbytes
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached -= 0 if old is None else old.nbytes
            return tile


def with_alpha(color: UInt8, opacity: UInt8 | None) -> UInt8:
    """Add an opacity, uint8 (height, width), to colours; None: opaque."""
    out = np.full((*color.shape[:2], 4), 255, np.uint8)
    out[..., :3] = color
    if opacity is not None:
        out[..., 3] = opacity
    return out


def needs_extra(path: Path, format: str, extra: str) -> str:
    """Say which extra of the package reads a format."""
    return f"{path.name} is {format}, which an extra reads: pip install 'heterotissue[{extra}]'"
