"""TIFFs that OpenSlide does not read, or not whole: OME-TIFF, strips, SubIFDs, other codecs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openslide
import tifffile
from PIL import Image

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.pictures import MAX_PLAIN_PIXELS
from shared.imaging.tiff_facts import TIFF_ERRORS, is_tiff, ome_facts, resolution_of

CACHE_BYTES = 128 << 20
"""Decoded tiles or strips that an open file keeps."""

RAW_BYTES = 4 << 20
"""Size of the pieces in which uncompressed pixels are read, however high their strips are."""

JPEG = {6, 7, 34892, 33007}
"""TIFF's numbers of JPEG compression, whose tiles share tables."""


class TiffSlide(openslide.AbstractSlide):
    """A TIFF with the interface of OpenSlide, read tile by tile or strip by strip.

    Pixels are 8-bit colour or grey; 16-bit ones are scaled. Tiles without data are transparent.

    Raises:
        InputError: the file holds other than one colour image, or pixels that are not read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._tiff = tifffile.TiffFile(path, _multifile=False)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], UInt8 | None] = OrderedDict()
        self._cached = 0
        try:
            series = max(self._tiff.series, key=_area)
            self._levels = [_Level.of(path, level) for level in series.levels]
            if not all(map(all, self.level_dimensions)):
                raise ValueError("an image of it has no pixels")
            self._properties = self._describe()
        except TIFF_ERRORS as error:
            self.close()
            raise InputError(
                f"{path.name} cannot be opened: {error}. Convert it to a pyramidal RGB TIFF "
                "(vips tiffsave --tile --pyramid)"
            ) from error
        except InputError:
            self.close()
            raise

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Return 'tiff' for a TIFF, else None."""
        return "tiff" if is_tiff(Path(filename)) else None

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self._levels)

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
        """Properties under OpenSlide's names."""
        return self._properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """None are read."""
        return {}

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than `downsample`."""
        fitting = [i for i, own in enumerate(self.level_downsamples) if own <= downsample]
        return max(fitting, key=lambda i: self.level_downsamples[i], default=0)

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
                    tile = self._tile(level, row * part.across + column)
                    if tile is None:
                        continue
                    at_x, at_y = column * part.columns, row * part.rows
                    u0, v0 = max(x0, at_x), max(y0, at_y)
                    u1 = min(x1, at_x + tile.shape[1])
                    v1 = min(y1, at_y + tile.shape[0])
                    piece = tile[v0 - at_y : v1 - at_y, u0 - at_x : u1 - at_x]
                    out[v0 - top : v1 - top, u0 - left : u1 - left] = part.rgba(piece)
        return Image.fromarray(out)

    def _tile(self, level: int, index: int) -> UInt8 | None:
        """Decode a tile or strip: (rows, columns, channels); None if the file holds no data."""
        with self._lock:
            if (level, index) in self._cache:
                self._cache.move_to_end((level, index))
                return self._cache[level, index]
            try:
                tile = self._levels[level].decode(self._tiff.filehandle, index)
            except TIFF_ERRORS as error:
                raise openslide.OpenSlideError(str(error)) from error
            self._cache[level, index] = tile
            self._cached += 0 if tile is None else tile.nbytes
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached -= 0 if old is None else old.nbytes
            return tile

    def _describe(self) -> dict[str, str]:
        """State vendor, resolution, objective and tile sizes, under OpenSlide's names."""
        facts = {openslide.PROPERTY_NAME_VENDOR: "ome-tiff" if self._tiff.is_ome else "tiff"}
        for number, level in enumerate(self._levels):
            facts[f"openslide.level[{number}].tile-width"] = str(level.columns)
            facts[f"openslide.level[{number}].tile-height"] = str(level.rows)
        spacing, objective = resolution_of(self._tiff), None
        if self._tiff.is_ome:
            stated, objective = ome_facts(str(self._tiff.ome_metadata), self.dimensions)
            spacing = stated or spacing
        if spacing is not None:
            facts[openslide.PROPERTY_NAME_MPP_X] = repr(spacing[0])
            facts[openslide.PROPERTY_NAME_MPP_Y] = repr(spacing[1])
        if objective is not None:
            facts[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = objective
        return facts


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
            return _with_alpha((np.moveaxis(colors, 0, -1) >> 8).astype(np.uint8), None)
        if piece.dtype != np.uint8:
            piece = (piece >> max(0, key.bitspersample - 8)).astype(np.uint8)
        opacity = piece[..., -1] if self.alpha else None
        color = piece[..., : 3 if piece.shape[-1] >= 3 else 1]
        return _with_alpha(255 - color if key.photometric == 0 else color, opacity)


def _with_alpha(color: UInt8, opacity: UInt8 | None) -> UInt8:
    out = np.full((*color.shape[:2], 4), 255, np.uint8)
    out[..., :3] = color
    if opacity is not None:
        out[..., 3] = opacity
    return out


def _area(series: Any) -> int:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("X", 0)) * int(sizes.get("Y", 0))
