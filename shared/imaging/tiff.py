"""TIFFs that OpenSlide does not read, or not whole: OME-TIFF, strips, SubIFDs, other codecs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import tifffile

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.channels import check_rgb
from shared.imaging.leveled import ROUNDING
from shared.imaging.pictures import MAX_PLAIN_PIXELS
from shared.imaging.sizes import is_scaled
from shared.imaging.tiff_facts import ASIDES, TIFF_ERRORS, ome_facts, resolution_of
from shared.imaging.tiled import Level, TiledSlide, with_alpha

RAW_BYTES = 4 << 20
"""Size of the pieces in which uncompressed pixels are read, however high their strips are."""

JPEG = {6, 7, 34892, 33007}
"""TIFF's numbers of JPEG compression, whose tiles share tables."""


class TiffSlide(TiledSlide):
    """A TIFF, read tile by tile or strip by strip.

    Pixels are 8-bit colour or grey; 16-bit ones are scaled. Tiles without data are transparent.

    Args:
        path: the file.
        file: the open file, if `path` is only its name.

    Raises:
        InputError: the file holds other than one colour image, or pixels that are not read.
    """

    def __init__(self, path: Path, file: BinaryIO | None = None) -> None:
        self._tiff = tifffile.TiffFile(file or path, _multifile=False)
        try:
            series = main_series(self._tiff)
            self._pieces = [_Level.of(path, level) for level in series.levels]
            if not all(own.width and own.height for own in self._pieces):
                raise ValueError("an image of it has no pixels")
            if self._tiff.is_ome:
                _check_scenes(path, self._tiff, series)
            first = self._pieces[0]
            mpp, objective = resolution_of(self._tiff), None
            if self._tiff.is_ome:
                size = (first.width, first.height)
                facts = ome_facts(str(self._tiff.ome_metadata), size)
                mpp, objective = facts.spacing or mpp, facts.objective
                if len(facts.names) == len(first.pages) == 3:
                    check_rgb(path, facts.names, facts.colors)
        except TIFF_ERRORS as error:
            self.close()
            raise InputError(
                f"{path.name} cannot be opened: {error}. Convert it to a pyramidal RGB TIFF "
                "(vips tiffsave --tile --pyramid)"
            ) from error
        except InputError:
            self.close()
            raise
        levels = [Level(own.width, own.height, own.columns, own.rows) for own in self._pieces]
        super().__init__("ome-tiff" if self._tiff.is_ome else "tiff", levels, mpp, objective)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    def read_tile(self, level: int, column: int, row: int) -> UInt8 | None:
        """Decode a tile or strip, in the channels of the file."""
        own = self._pieces[level]
        return own.decode(self._tiff.filehandle, row * own.across + column)

    def rgba(self, level: int, piece: UInt8) -> UInt8:
        """Turn a part of a tile into uint8 RGBA."""
        return self._pieces[level].rgba(piece)


@dataclass(frozen=True)
class _Level:
    """One resolution: one page, or a page for each of three colours."""

    pages: tuple[Any, ...]
    width: int
    height: int
    columns: int
    rows: int
    across: int
    down: int
    raw: bool
    alpha: bool

    PHOTOMETRIC: ClassVar[dict[int, str]] = {
        0: "grey", 1: "grey", 2: "RGB", 3: "palette", 6: "YCbCr",
    }  # fmt: skip

    @classmethod
    def of(cls, path: Path, series: Any) -> _Level:
        axes, pages = str(series.axes), tuple(series.pages)
        if axes not in {"YX", "YXS", "SYX", "CYX"} or None in pages:
            raise InputError(
                f"{path.name} holds not one colour image but an array with the axes {axes} "
                f"{series.shape}: export one RGB image of the tissue"
            )
        page = pages[0].keyframe
        channels = len(pages) * page.samplesperpixel
        if len(pages) not in {1, 3} or (axes == "CYX" and channels != 3):
            raise InputError(
                f"{path.name} has {channels} channels, not red, green and blue: it looks like "
                "fluorescence, and only bright-field images are read"
            )
        known = page.photometric in cls.PHOTOMETRIC and channels in {1, 2, 3, 4}
        depth = page.dtype is not None and page.dtype.kind == "u" and page.dtype.itemsize <= 2
        codec = page.compression in tifffile.TIFF.DECOMPRESSORS
        raw_ycbcr = page.photometric == 6 and page.compression not in JPEG | {33003, 34712}
        if not (known and depth and codec) or raw_ycbcr:
            raise InputError(
                f"{path.name} has pixels that are not read: {page.dtype}, {channels} channels, "
                f"photometric {int(page.photometric)}, compression {int(page.compression)}. "
                "Convert it to an 8-bit RGB TIFF (vips tiffsave --tile --pyramid)"
            )
        width, height = page.imagewidth, page.imagelength
        columns = page.tilewidth if page.is_tiled else width
        rows = page.tilelength if page.is_tiled else min(page.rowsperstrip or height, height)
        raw = page.is_memmappable and not page.is_tiled
        if raw:
            rows = max(1, RAW_BYTES // (width * page.dtype.itemsize * page.samplesperpixel))
        if columns * rows > MAX_PLAIN_PIXELS:
            raise InputError(
                f"{path.name} stores {columns}×{rows} px in one piece; at most "
                f"{MAX_PLAIN_PIXELS // 10**6} megapixels are decoded at once: make it a tiled "
                "TIFF (vips tiffsave --tile --pyramid)"
            )
        extra = page.extrasamples
        return cls(
            pages, width, height, columns, rows, -(-width // columns), -(-height // rows),
            raw=raw, alpha=channels in {2, 4} and bool(extra) and int(extra[0]) in {1, 2},
        )  # fmt: skip

    def decode(self, file: Any, index: int) -> UInt8 | None:
        parts = []
        for page in self.pages:
            planes = page.keyframe.samplesperpixel if page.keyframe.planarconfig == 2 else 1
            for plane in range(planes):
                part = (
                    self._rows(file, page, plane, index)
                    if self.raw
                    else self._segment(file, page, plane * self.across * self.down + index)
                )
                if part is None:
                    return None
                parts.append(part)
        return np.concatenate(parts, -1) if len(parts) > 1 else parts[0]

    def _segment(self, file: Any, page: Any, index: int) -> UInt8 | None:
        key = page.keyframe
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        file.seek(offset)
        data = file.read(count)
        if len(data) < count:
            raise ValueError("the file ends here")
        tables = {}
        if key.compression in JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
        decoded, _, shape = key.decode(data, index, **tables)
        if decoded is None:
            return None
        return np.asarray(decoded)[0, : shape[1], : shape[2]]

    def _rows(self, file: Any, page: Any, plane: int, index: int) -> UInt8:
        """Read rows of an uncompressed plane, which lies in one piece."""
        key = page.keyframe
        samples = 1 if key.planarconfig == 2 else key.samplesperpixel
        dtype = np.dtype(page.parent.byteorder + key.dtype.char)
        first = index * self.rows
        rows = min(self.rows, self.height - first)
        file.seek(
            page.dataoffsets[0]
            + (plane * self.height + first) * self.width * samples * dtype.itemsize
        )
        data = file.read(rows * self.width * samples * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(rows, self.width, samples)

    def rgba(self, piece: UInt8) -> UInt8:
        key = self.pages[0].keyframe
        if key.photometric == 3:
            colors = np.asarray(key.colormap)[:, piece[..., 0]]
            return with_alpha((np.moveaxis(colors, 0, -1) >> 8).astype(np.uint8), None)
        if piece.dtype != np.uint8:
            piece = (piece >> max(0, key.bitspersample - 8)).astype(np.uint8)
        opacity = piece[..., -1] if self.alpha else None
        color = piece[..., : 3 if piece.shape[-1] >= 3 else 1]
        return with_alpha(255 - color if key.photometric == 0 else color, opacity)


LEAST_STEP = 1.9
"""Smallest factor from one level to the next."""

LEAST_SCENE = 1 / 16
"""Area of an image, as part of the largest, from which on it may be a scene."""


def _check_scenes(path: Path, tiff: tifffile.TiffFile, main: Any) -> None:
    """Raise `InputError` if an OME-TIFF has a second scene, which would not be read.

    Levels, and pictures of the glass, are images beside the first one too.
    """
    xml, size = str(tiff.ome_metadata), _size(main)
    spacing = ome_facts(xml, size).spacing
    scenes = [
        other
        for other in tiff.series
        if other is not main
        and not ASIDES.search(str(other.name))
        and not (
            size[0] >= LEAST_STEP * _size(other)[0]
            and is_scaled(_size(other), size, slack=ROUNDING)
        )
        and (
            _area(other) >= LEAST_SCENE * _area(main)
            or (spacing is not None and ome_facts(xml, _size(other)).spacing == spacing)
        )
    ]
    if scenes:
        sizes = ", ".join("×".join(map(str, _size(each))) for each in (main, *scenes)[:5])
        raise InputError(
            f"{path.name} holds {len(scenes) + 1} images ({sizes} px), of which only the largest "
            "would be read: export each scene as a file of its own"
        )


def main_series(tiff: tifffile.TiffFile) -> Any:
    """Return the largest image of a TIFF, with its levels: the one that is read."""
    return max(tiff.series, key=_area)


def _size(series: Any) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("X", 0)), int(sizes.get("Y", 0))


def _area(series: Any) -> int:
    return math.prod(_size(series))
