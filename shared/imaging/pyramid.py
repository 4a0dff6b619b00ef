"""Writing pyramidal tiled TIFFs from tiles, so that memory stays bounded."""

from __future__ import annotations

import math
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import cv2
import imagecodecs
import numpy as np
import tifffile

from shared.arrays import UInt8
from shared.imaging.label_map import LABEL_TILE
from shared.imaging.tiff_facts import XMP

TILE = LABEL_TILE
"""Side of the tiles, pixels."""

BIG = 2**30
"""Pixels from which on a file is a BigTIFF, which may be larger than 4 GiB."""


class TileCodec(ABC):
    """How the tiles of a TIFF are compressed, and how a level is halved to the next.

    Attributes:
        options: arguments of tifffile.
    """

    options: ClassVar[dict[str, Any]]

    @abstractmethod
    def encode(self, tile: UInt8) -> bytes:
        """Compress a tile of `TILE` pixels a side."""

    @abstractmethod
    def decode(self, data: bytes) -> UInt8:
        """Return the pixels of a compressed tile."""

    @abstractmethod
    def halve(self, pixels: UInt8, width: int, height: int) -> UInt8:
        """Return pixels at half their size, at most (height, width)."""

    def tiles(self, rows: UInt8) -> Iterator[bytes]:
        """Compress rows of an image, tile by tile; the last tiles are filled up at their edges."""
        for y in range(0, rows.shape[0], TILE):
            for x in range(0, rows.shape[1], TILE):
                tile = rows[y : y + TILE, x : x + TILE]
                missing = [(0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)]
                yield self.encode(np.pad(tile, missing[: tile.ndim], mode="edge"))


class Jpeg(TileCodec):
    """RGB tiles as JPEG of quality 95, with colours at full resolution."""

    options: ClassVar[dict[str, Any]] = {
        "compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1),
    }  # fmt: skip

    def encode(self, tile: UInt8) -> bytes:
        return bytes(
            imagecodecs.jpeg8_encode(
                tile, level=95, colorspace="RGB", outcolorspace="YCBCR", subsampling="444"
            )
        )

    def decode(self, data: bytes) -> UInt8:
        return np.asarray(imagecodecs.jpeg8_decode(data), np.uint8)

    def halve(self, pixels: UInt8, width: int, height: int) -> UInt8:
        even = pixels[: 2 * height, : 2 * width]
        size = (even.shape[1] // 2, even.shape[0] // 2)
        return np.asarray(cv2.resize(even, size, interpolation=cv2.INTER_AREA), np.uint8)


class Deflate(Jpeg):
    """RGB tiles without loss."""

    options: ClassVar[dict[str, Any]] = {"compression": "zlib", "photometric": "rgb"}
    shape: ClassVar[tuple[int, ...]] = (TILE, TILE, 3)

    def encode(self, tile: UInt8) -> bytes:
        return zlib.compress(tile.tobytes(), 6)

    def decode(self, data: bytes) -> UInt8:
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(self.shape)


class Labels(Deflate):
    """Tiles of a label map; a pixel of the next level is one of its four."""

    options: ClassVar[dict[str, Any]] = {"compression": "zlib", "photometric": "minisblack"}
    shape: ClassVar[tuple[int, ...]] = (TILE, TILE)

    def halve(self, pixels: UInt8, width: int, height: int) -> UInt8:
        return pixels[: 2 * height : 2, : 2 * width : 2]


def write_pyramid(
    path: Path,
    tiles: Iterable[bytes],
    shape: tuple[int, ...],
    mpp: float,
    codec: TileCodec,
    xmp: bytes,
) -> None:
    """Write a pyramid whose levels halve until one fits into a tile.

    Args:
        path: the .tiff file to write.
        tiles: compressed tiles of level 0, row by row.
        shape: (height, width, 3), or (height, width) of a label map.
        mpp: µm per pixel of level 0.
        codec: how tiles are compressed.
        xmp: packet that says what the picture is.
    """
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyramid-") as folder,
        tifffile.TiffWriter(path, bigtiff=shape[0] * shape[1] >= BIG) as tiff,
    ):
        level = 0
        while True:
            smaller = (max(1, shape[0] // 2), max(1, shape[1] // 2), *shape[2:])
            half = Path(folder) / str(level)
            with half.open("wb") as file:
                tiff.write(
                    _copying(tiles, shape, smaller, codec, file),
                    shape=shape, dtype=np.uint8, tile=(TILE, TILE), metadata=None,
                    resolution=(1e4 / mpp / 2**level,) * 2, resolutionunit="CENTIMETER",
                    subfiletype=int(level > 0), software="HeteroTissue",
                    extratags=[] if level else [(XMP, 1, len(xmp), xmp, True)],
                    **codec.options,
                )  # fmt: skip
            if max(shape[:2]) <= TILE:
                return
            tiles = _tiles(half, smaller, codec)
            shape, level = smaller, level + 1


def _tiles(path: Path, shape: tuple[int, ...], codec: TileCodec) -> Iterator[bytes]:
    """Read the pixels of a level row of tiles by row of tiles, and compress them."""
    with path.open("rb") as file:
        for top in range(0, shape[0], TILE):
            rows = (min(TILE, shape[0] - top), *shape[1:])
            yield from codec.tiles(np.fromfile(file, np.uint8, math.prod(rows)).reshape(rows))


def _copying(
    tiles: Iterable[bytes],
    shape: tuple[int, ...],
    smaller: tuple[int, ...],
    codec: TileCodec,
    half: BinaryIO,
) -> Iterator[bytes]:
    """Yield the tiles of a level, and write the pixels of the `smaller` one into a file."""
    across, side = -(-shape[1] // TILE), TILE // 2
    rows = np.empty((0, *smaller[1:]), np.uint8)
    for number, data in enumerate(tiles):
        row, column = divmod(number, across)
        if not column:
            rows = np.empty((max(0, min(side, smaller[0] - row * side)), *smaller[1:]), np.uint8)
        part = rows[:, column * side : (column + 1) * side]
        if part.size:
            part[:] = codec.halve(codec.decode(data), part.shape[1], part.shape[0])
        if column == across - 1:
            half.write(rows.tobytes())
        yield data
