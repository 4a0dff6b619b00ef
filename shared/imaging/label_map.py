"""Label maps: tiled, deflated, one-channel TIFFs, which OpenSlide and QuPath open."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from pydantic import BaseModel, Field, ValidationError

from shared.arrays import UInt8
from shared.contracts.base import ClassName
from shared.errors import InputError
from shared.imaging.tiff_facts import TIFF_ERRORS

LABEL_TILE = 512
"""Side of the tiles of a label map, and height of the strips that it is written from, pixels."""


def write_label_map(
    path: Path,
    strips: Iterator[UInt8],
    width: int,
    height: int,
    mpp: float,
    names: Sequence[str] = (),
) -> None:
    """Write a label map from strips of `LABEL_TILE` rows, so that memory stays bounded.

    Args:
        path: the .tif file to write.
        strips: uint8 (LABEL_TILE, width) from top to bottom; the last may have fewer rows.
        width, height: size of the label map, pixels.
        mpp: µm per pixel, along x and y: pixels of label maps are square.
        names: name of each label, from 0 on, for a map that no cohort's record describes.
    """

    def tiles() -> Iterator[UInt8]:
        for strip in strips:
            for x in range(0, width, LABEL_TILE):
                tile = strip[:, x : x + LABEL_TILE]
                missing = (LABEL_TILE - tile.shape[0], LABEL_TILE - tile.shape[1])
                yield np.pad(tile, ((0, missing[0]), (0, missing[1])))

    tifffile.imwrite(
        path,
        tiles(),
        shape=(height, width),
        dtype=np.uint8,
        tile=(LABEL_TILE, LABEL_TILE),
        compression="zlib",
        photometric="minisblack",
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        description=json.dumps({"labels": list(names)}) if names else None,
        bigtiff=width * height > 2**31,
    )


MAX_SIDE = 1 << 20
"""Greatest side of a label map, pixels: more is a damaged header."""

KEPT_TILES = 64
"""Number of decoded tiles that an open label map keeps."""

_DEFLATE = {8, 32946}
"""TIFF's numbers of deflate."""


class LabelMap:
    """An open label map. Threads may share it.

    Args:
        path: the .tif file.
        damaged: makes the error for a damaged file from what is wrong with it.

    Attributes:
        width, height: size of the label map, pixels.
        mpp: µm per pixel.
        names: name of each label, from 0 on; empty if the file does not state them.

    Raises:
        InputError: the file is no label map, or is damaged.
    """

    def __init__(self, path: Path, damaged: Callable[[str], InputError] | None = None) -> None:
        self._damaged = damaged or (
            lambda why: InputError(f"{path.name} is no label map, or is damaged: {why}")
        )
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise InputError(f"label map {path.name} cannot be opened: {error}") from error
        try:
            with tifffile.TiffFile(self._file, _multifile=False) as tiff:
                page: Any = tiff.pages.first
                across, per_cm = page.tags["XResolution"].value, page.tags["ResolutionUnit"].value
                self.width, self.height = int(page.imagewidth), int(page.imagelength)
                places = zip(page.dataoffsets, page.databytecounts, strict=True)
                self._places = [(index(offset), index(size)) for offset, size in places]
                known = (
                    (page.tilewidth, page.tilelength) == (LABEL_TILE, LABEL_TILE)
                    and (page.samplesperpixel, page.bitspersample, page.predictor) == (1, 8, 1)
                    and page.compression in _DEFLATE
                    and per_cm == 3
                )
                self.mpp = 1e4 * across[1] / across[0]
                self.names = stated_names(page.description)
            self._across = -(-self.width // LABEL_TILE)
            tiles = self._across * -(-self.height // LABEL_TILE)
            if not (
                known
                and min(self.width, self.height) > 0
                and max(self.width, self.height) <= MAX_SIDE
                and len(self._places) == tiles
                and 0 < self.mpp < math.inf
            ):
                raise ValueError("it has other pixels than a label map")
        except TIFF_ERRORS as error:
            self._file.close()
            raise self._damaged(str(error)) from error
        self._tile = lru_cache(KEPT_TILES)(self._decode)

    def __enter__(self) -> LabelMap:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tile.cache_clear()  # which refers to the map, so that only a rare collection frees it

    def _decode(self, tile: int) -> UInt8:
        offset, size = self._places[tile]
        try:
            if size > 2 * LABEL_TILE**2:
                raise ValueError("a tile of it is too large")
            packed = os.pread(self._file.fileno(), size, offset)
            plain = zlib.decompressobj().decompress(packed, LABEL_TILE**2 + 1)
            return np.frombuffer(plain, np.uint8).reshape(LABEL_TILE, LABEL_TILE)
        except (OSError, OverflowError, ValueError, zlib.error) as error:
            raise self._damaged(str(error)) from error

    def window(self, x: int, y: int, width: int, height: int) -> UInt8:
        """Read a window given in label-map pixels: uint8 (height, width), 0 outside the map.

        Raises:
            InputError: the file is damaged.
        """
        labels = np.zeros((height, width), np.uint8)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        if right <= max(x, 0) or bottom <= max(y, 0):
            return labels
        for top in range(max(y, 0) // LABEL_TILE * LABEL_TILE, bottom, LABEL_TILE):
            for left in range(max(x, 0) // LABEL_TILE * LABEL_TILE, right, LABEL_TILE):
                tile = self._tile(top // LABEL_TILE * self._across + left // LABEL_TILE)
                ys = slice(max(y, top, 0), min(bottom, top + LABEL_TILE))
                xs = slice(max(x, left, 0), min(right, left + LABEL_TILE))
                labels[_moved(ys, y), _moved(xs, x)] = tile[_moved(ys, top), _moved(xs, left)]
        return labels

    def whole(self) -> UInt8:
        """Read the whole label map: uint8 (height, width)."""
        strips = (
            self.window(0, y, self.width, min(LABEL_TILE * 8, self.height - y))
            for y in range(0, self.height, LABEL_TILE * 8)
        )
        return np.concatenate(list(strips))

    def read(
        self, x: int, y: int, size: tuple[int, int], mpp: float, slide_mpp: tuple[float, float]
    ) -> UInt8:
        """Read a window given in the slide's coordinates, by nearest neighbour.

        Args:
            x, y: upper left corner of the window, level-0 pixels of the slide.
            size: width and height in pixels at `mpp`.
            mpp: µm per pixel of the result.
            slide_mpp: µm per level-0 pixel of the slide, along x and y.

        Returns:
            uint8 (height, width), with 0 outside the map.
        """
        left, top = x * slide_mpp[0] / self.mpp, y * slide_mpp[1] / self.mpp
        step = mpp / self.mpp
        xs = np.floor(left + (np.arange(size[0]) + 0.5) * step).astype(int)
        ys = np.floor(top + (np.arange(size[1]) + 0.5) * step).astype(int)
        part = self.window(int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
        return part[np.ix_(ys - ys[0], xs - xs[0])]


class _Description(BaseModel):
    labels: tuple[ClassName, ...] = Field(max_length=256)


def stated_names(description: str) -> tuple[str, ...]:
    """Read the names of labels, from 0 on, out of a TIFF's description, as `write_label_map` does.

    Returns:
        The names; none if it does not state them.

    Raises:
        ValueError: it states them, but they are no list of names of classes.
    """
    if not description.lstrip().startswith("{") or '"labels"' not in description:
        return ()
    try:
        return _Description.model_validate_json(description).labels
    except ValidationError as error:
        raise ValueError(
            "its description has 'labels' that are no list of names of classes"
        ) from error


def _moved(span: slice, origin: int) -> slice:
    return slice(span.start - origin, span.stop - origin)


def enlarge(labels: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize a label map by nearest neighbour to `size`, (width, height)."""
    return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
