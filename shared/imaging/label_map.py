"""Label maps: tiled, deflated, one-channel TIFFs, which OpenSlide and QuPath open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import openslide
import tifffile

from shared.arrays import UInt8
from shared.errors import InputError

LABEL_TILE = 512
"""Side of the tiles of a label map, and height of the strips that it is written from, pixels."""


def write_label_map(
    path: Path, strips: Iterator[UInt8], width: int, height: int, mpp: float
) -> None:
    """Write a label map from strips of `LABEL_TILE` rows, so that memory stays bounded.

    Args:
        path: the .tif file to write.
        strips: uint8 (LABEL_TILE, width) from top to bottom; the last may have fewer rows.
        width, height: size of the label map, pixels.
        mpp: µm per pixel, along x and y: pixels of label maps are square.
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
        bigtiff=width * height > 2**31,
    )


MAX_SIDE = 1 << 20
"""Greatest side of a label map, pixels: more is a damaged header."""


class LabelMap:
    """An open label map.

    Attributes:
        width, height: size of the label map, pixels.
        mpp: µm per pixel.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._source = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise InputError(f"label map {path.name} cannot be opened: {error}") from error
        self._name = path.name
        self.width, self.height = self._source.dimensions
        tile = self._source.properties.get("openslide.level[0].tile-width", "0")
        if max(self.width, self.height) > MAX_SIDE or int(tile) != LABEL_TILE:
            self._source.close()
            raise InputError(f"{path.name} is no label map, or is damaged")
        try:
            self.mpp = float(self._source.properties[openslide.PROPERTY_NAME_MPP_X])
        except (KeyError, ValueError) as error:
            self._source.close()
            raise InputError(f"label map {path.name} states no µm per pixel") from error

    def __enter__(self) -> LabelMap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source.close()

    def window(self, x: int, y: int, width: int, height: int) -> UInt8:
        """Read a window given in label-map pixels: uint8 (height, width), 0 outside the map.

        Raises:
            InputError: the file is damaged.
        """
        try:
            region = np.asarray(self._source.read_region((x, y), 0, (width, height)))
        except (openslide.OpenSlideError, MemoryError) as error:
            raise InputError(f"label map {self._name} is damaged: {error}") from error
        labels: UInt8 = np.where(region[..., 3] > 0, region[..., 0], 0).astype(np.uint8)
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


def enlarge(labels: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize a label map by nearest neighbour to `size`, (width, height)."""
    return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
