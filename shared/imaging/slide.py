"""Slides: positions in level-0 pixels, windows at any resolution, damage that is survived."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import openslide
from PIL import Image

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.sandboxed_slide import SandboxedSlide, open_source

MAX_UPSAMPLING = 1.1
"""Largest factor by which a read may be finer than level 0."""

FINEST, COARSEST = 0.05, 20.0
"""µm per pixel that a file may state. Others are no slide's: a printer's 72 dpi is 353 µm."""

ANY_PROGRAM = {"generic-tiff", "tiff", "ome-tiff", "image"}
"""Formats (`Slide.vendor`) that any program writes, with any resolution; the rest are scanners'."""

WINDOW_PIXELS = 1 << 23
"""Largest area, in pixels of a level, that is read at once."""

BLOCK_WIDTH, BLOCK_PIXELS = 1024, 1 << 20
"""Width of the blocks that larger windows are read in, and their largest area, pixels."""

MAX_FLAT_PIXELS = 10**10
"""Largest level that a thumbnail is made from; reading it takes minutes."""

DAMAGE_SIDE = 64
"""Side of the squares, in pixels of the level that is read, to which damage is narrowed down."""


class DamagedError(InputError):
    """A slide cannot be read in one place; it may be readable elsewhere."""


class Bounds(NamedTuple):
    """The scanned part of a slide, level-0 pixels. QuPath's coordinates begin at its corner."""

    x: int
    y: int
    width: int
    height: int


class Slide:
    """An open slide. Positions are level-0 pixels; sizes are pixels at a stated mpp.

    Attributes:
        width, height: size of the slide, level-0 pixels.
        mpp, mpp_y: µm per level-0 pixel, along x and y.
        stated_mpp: what the file states as µm per pixel along x and y; None if nothing, or if it
            is not credible and no scanner wrote it.
        vendor: OpenSlide's name of the format; 'tiff' or 'ome-tiff' for TIFFs that it does not
            read, 'image' for plain images.
        levels: number of pyramid levels.
        downsamples: width of level 0 / width of each level.
        objective: nominal magnification; None if not stated.
        bounds: the scanned part, where the file states one (MIRAX, Leica, Ventana).
        mark: what the file says of itself, if it says that it is synthetic.
    """

    def __init__(
        self,
        path: Path,
        source: openslide.AbstractSlide,
        mpp: float | None = None,
        mpp_y: float | None = None,
    ) -> None:
        self.path = path
        self._source = source
        properties = source.properties
        self.width, self.height = source.dimensions
        self.levels = source.level_count
        self.downsamples = tuple(source.level_downsamples)
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "image")
        self.objective = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.bounds = _bounds(source)
        self.mark = source.mark if isinstance(source, SandboxedSlide) else None
        x = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
        y = _number(properties.get(openslide.PROPERTY_NAME_MPP_Y)) or x
        credible = x and y and min(x, y) >= FINEST and max(x, y) <= COARSEST
        meant = credible or self.vendor not in ANY_PROGRAM
        self.stated_mpp = (x, y) if x and y and meant else None
        if mpp is not None:
            self.mpp, self.mpp_y = mpp, mpp_y or mpp
        elif credible and x and y:
            self.mpp, self.mpp_y = x, y
        else:
            raise InputError(_no_resolution(path, x, y, self.objective))

    @classmethod
    def open(cls, path: Path, mpp: float | None = None, mpp_y: float | None = None) -> Slide:
        """Open a slide or a plain image.

        Args:
            path: the file.
            mpp: µm per pixel, instead of what the file states.
            mpp_y: µm per pixel along y, if it differs from `mpp`.

        Raises:
            InputError: the file is missing, in no known format, damaged, too large a
                plain image, or of unknown resolution.
        """
        source = open_source(path)
        try:
            return cls(path, source, mpp, mpp_y)
        except InputError:
            source.close()
            raise

    @property
    def finest(self) -> float:
        """Finest µm per pixel at which both axes can be read."""
        return max(self.mpp, self.mpp_y)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def source(self) -> openslide.AbstractSlide:
        """What reads the file, with the interface of OpenSlide."""
        return self._source

    def layout(self, size: tuple[int, int], mpp: float) -> tuple[int, tuple[int, int]]:
        """Return the level that a window of `size` at `mpp` is read from, and its size there."""
        level = self._level(mpp)
        return level, self._spans(size, mpp, level)

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Return the width and height of a level's tiles, pixels; None if it has none."""
        name = f"openslide.level[{level}].tile-"
        width, height = (
            _number(self._source.properties.get(name + side)) for side in ("width", "height")
        )
        return (int(width), int(height)) if width and height else None

    @property
    def offset_nm(self) -> tuple[float, float] | None:
        """Centre of the image from the centre of the glass, nm; None if not stated (Hamamatsu)."""
        names = ("hamamatsu.XOffsetFromSlideCentre", "hamamatsu.YOffsetFromSlideCentre")
        stated = [self._source.properties.get(name) for name in names]
        try:
            x, y = (float(value) for value in stated if value is not None)
        except ValueError:
            return None
        return (x, y) if math.isfinite(x) and math.isfinite(y) else None

    def check_mpp(self, mpp: float) -> None:
        """Raise `InputError` if `mpp` is finer than the slide's level 0."""
        if mpp * MAX_UPSAMPLING < self.finest:
            raise InputError(
                f"{self.path.name} has {self.finest:.4g} µm/px at its finest level, too coarse for "
                f"the {mpp:.4g} µm/px that were asked for: ask for {self.finest:.4g} or more (of "
                "regions and patches)"
            )

    def read(self, x: int, y: int, size: tuple[int, int], mpp: float) -> UInt8:
        """Read a window. A large one is read in blocks, so that memory stays bounded.

        Args:
            x, y: upper left corner, level-0 pixels; parts outside the slide are white.
            size: width and height in pixels at `mpp`.
            mpp: µm per pixel of the result, which is averaged from the nearest finer level.

        Returns:
            uint8 RGB (height, width, 3).

        Raises:
            DamagedError: the file is damaged in this place.
            InputError: `mpp` is finer than the slide.
        """
        self.check_mpp(mpp)
        level = self._level(mpp)
        spans = self._spans(size, mpp, level)
        if spans[0] * spans[1] <= WINDOW_PIXELS:
            return self._read(x, y, size, mpp, level)
        out = np.empty((size[1], size[0], 3), np.uint8)
        for left, top, width, height in self._blocks(size, mpp, level):
            at = self._moved(x, y, left, top, mpp)
            out[top : top + height, left : left + width] = self._read(
                *at, (width, height), mpp, level
            )
        return out

    def thumbnail_pixels(self, max_side: int) -> int:
        """Return how many pixels are read for a thumbnail of that side."""
        mpp = max(self.finest, max(self.width * self.mpp, self.height * self.mpp_y) / max_side)
        width, height = self._source.level_dimensions[self._level(mpp)]
        return int(width * height)

    def thumbnail(self, max_side: int, max_damaged: float = 0.0) -> tuple[UInt8, float]:
        """Read the whole slide with square pixels; what cannot be read is white.

        Args:
            max_side: largest width and height, pixels.
            max_damaged: largest share of the slide that may be unreadable.

        Returns:
            uint8 RGB (h, w, 3), and the share of it that cannot be read, 0 to 1.

        Raises:
            InputError: more than `max_damaged` cannot be read, or the slide has no coarse level
                and more than `MAX_FLAT_PIXELS`.
        """
        spans = (self.width * self.mpp, self.height * self.mpp_y)
        mpp = max(self.finest, max(spans) / max_side)
        size = (max(1, round(spans[0] / mpp)), max(1, round(spans[1] / mpp)))
        level = self._level(mpp)
        width, height = self._source.level_dimensions[level]
        if width * height > MAX_FLAT_PIXELS:
            raise InputError(
                f"{self.path.name} has {width}×{height} px and no level coarse enough for a "
                "thumbnail: make it a pyramidal TIFF first (vips tiffsave --tile --pyramid)"
            )
        out = np.full((size[1], size[0], 3), 255, np.uint8)
        lost = 0
        todo = self._blocks(size, mpp, level)[::-1]
        side = max(1, int(DAMAGE_SIDE * self.mpp * self._source.level_downsamples[level] / mpp))
        while todo:
            left, top, width, height = todo.pop()
            at = self._moved(0, 0, left, top, mpp)
            try:
                part = self._read(*at, (width, height), mpp, level)
            except DamagedError as error:
                if max(width, height) > side:
                    todo += _quarters(left, top, width, height, side)
                    continue
                lost += width * height
                if lost > max_damaged * size[0] * size[1]:
                    raise InputError(
                        f"{self.path.name} is damaged in more than {max_damaged:.2g} of its area "
                        f"(max_damaged): {error}"
                    ) from error
                continue
            out[top : top + height, left : left + width] = part
        return out, lost / (size[0] * size[1])

    def _level(self, mpp: float) -> int:
        return self._source.get_best_level_for_downsample(mpp / self.finest * 1.001)

    def _moved(self, x: int, y: int, left: int, top: int, mpp: float) -> tuple[int, int]:
        return x + round(left * mpp / self.mpp), y + round(top * mpp / self.mpp_y)

    def _spans(self, size: tuple[int, int], mpp: float, level: int) -> tuple[int, int]:
        """Return the width and height of a window in pixels of a level."""
        scale = self._source.level_downsamples[level]
        return (
            max(1, round(size[0] * mpp / self.mpp / scale)),
            max(1, round(size[1] * mpp / self.mpp_y / scale)),
        )

    def _blocks(
        self, size: tuple[int, int], mpp: float, level: int
    ) -> list[tuple[int, int, int, int]]:
        """Divide a window into blocks of bounded area: (left, top, width, height) at `mpp`."""
        spans = self._spans(size, mpp, level)
        # Strips are as wide as the slide: narrower blocks would decode each strip several times.
        tile = _number(self._source.properties.get(f"openslide.level[{level}].tile-width"))
        wide = min(spans[0], max(BLOCK_WIDTH, int(tile or 0)))
        width = max(1, size[0] * wide // spans[0])
        height = max(1, size[1] * max(1, BLOCK_PIXELS // wide) // spans[1])
        return [
            (left, top, min(width, size[0] - left), min(height, size[1] - top))
            for top in range(0, size[1], height)
            for left in range(0, size[0], width)
        ]

    def _read(self, x: int, y: int, size: tuple[int, int], mpp: float, level: int) -> UInt8:
        spans = self._spans(size, mpp, level)
        try:
            tile = self._source.read_region((x, y), level, spans)
        except openslide.OpenSlideError as error:
            raise DamagedError(
                f"{self.path.name} cannot be read at ({x}, {y}): {error}. The file is damaged or "
                "incomplete; copy it again from its source"
            ) from error
        white = Image.new("RGB", tile.size, (255, 255, 255))
        white.paste(tile, mask=tile.getchannel("A"))
        rgb = np.asarray(white, np.uint8)
        if spans == size:
            return rgb
        return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _quarters(
    left: int, top: int, width: int, height: int, side: int
) -> list[tuple[int, int, int, int]]:
    """Divide a block in two along each of its axes that is longer than `side`."""
    columns = [(left, width)]
    rows = [(top, height)]
    if width > side:
        columns = [(left, width // 2), (left + width // 2, width - width // 2)]
    if height > side:
        rows = [(top, height // 2), (top + height // 2, height - height // 2)]
    return [(x, y, w, h) for y, h in rows for x, w in columns]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _bounds(source: openslide.AbstractSlide) -> Bounds | None:
    names = ("x", "y", "width", "height")
    values = [source.properties.get(f"openslide.bounds-{name}") for name in names]
    try:
        bounds = Bounds(*(int(value) for value in values if value is not None))
    except (TypeError, ValueError):
        return None
    width, height = source.dimensions
    inside = 0 <= bounds.x < width and 0 <= bounds.y < height
    return bounds if inside and 0 < bounds.width <= width and 0 < bounds.height <= height else None


def _no_resolution(path: Path, x: float | None, y: float | None, objective: float | None) -> str:
    """Say what a file states as its resolution, why that is not taken, and what to do."""
    stated = f"{path.name} states no resolution"
    if x and y:
        wrong = x if not FINEST <= x <= COARSEST else y
        kind = "fine" if wrong < FINEST else "coarse"
        dpi = f" ({25400 / wrong:.0f} dpi, as for printing)" if wrong > 2 * COARSEST else ""
        stated = (
            f"{path.name} states {wrong:.4g} µm per pixel{dpi}, too {kind} for a slide "
            f"({FINEST:g} to {COARSEST:g}), so it counts as none"
        )
    if objective:
        return (
            f"{stated}: pass --mpp with its µm per pixel (the file states {objective:g}x: "
            f"pass --mpp {10 / objective:.4g})"
        )
    return f"{stated}: pass --mpp with its µm per pixel (about 0.25 at 40x, 0.5 at 20x)"
