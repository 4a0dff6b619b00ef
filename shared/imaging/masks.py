"""Masks: label images of slides and tiles, read exactly and by rows, and their pixel values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from shared.arrays import UInt8
from shared.errors import InputError, quoted
from shared.imaging.label_map import stated_names
from shared.imaging.pictures import ALONE, open_picture
from shared.imaging.tiff_facts import pages_of

MAX_PIXELS = 500_000_000
"""Largest number of pixels of a mask that is no TIFF."""

MAX_VALUE = 2**24
"""Bound of pixel values, and of colours written as one number."""

STRIP = 1024
"""Number of rows that are read at a time."""

EXACT = {"NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "ZSTD", "LZMA", "CCITTRLE",
         "CCITTFAX3", "CCITTFAX4"}  # fmt: skip
"""Compressions of TIFF that keep every value."""

ORIENTATION = 274
"""EXIF and TIFF tag of the orientation; 1 is upright."""

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""Each orientation, and the one that turns its picture back."""

MAGIC = {
    b"\x89PNG": "PNG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WEBP", b"II": "GTiff",
    b"MM": "GTiff", b"\x93NUMPY": "npy", b"\xff\xd8": "JPEG",
    b"\x00\x00\x00\x0cjP": "JPEG 2000", b"\xff\x4f": "JPEG 2000",
}  # fmt: skip

LOSSY = {"JPEG", "JPEG 2000", "lossy WebP"}

Values = NDArray[np.integer[Any]]
"""Pixel values (rows, width)."""


def turned(array: UInt8, orientation: int) -> UInt8:
    """Turn an image or label map (h, w, …) that is stored with an EXIF orientation upright."""
    if orientation in {2, 7, 5, 4}:
        array = array[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(array, quarters))


@dataclass(frozen=True)
class Mask:
    """An open mask.

    Attributes:
        path: the file.
        width, height: size in pixels.
        orientation: EXIF orientation that the file states; 1 is upright.
        palette: colours of a palette image, RGB; empty if it has none.
        bands: number of channels.
        names: name of each value, from 0 on, as `write_label_map` states them; else empty.
    """

    path: Path
    width: int
    height: int
    orientation: int
    palette: tuple[tuple[int, int, int], ...]
    bands: int
    _read: Callable[[int, int], NDArray[Any]]
    names: tuple[str, ...] = ()

    def stored(self, top: int, bottom: int) -> NDArray[Any]:
        """Read rows from `top` to before `bottom` with the values that the file stores."""
        return self._read(top, bottom)

    def rows(self, top: int, bottom: int) -> Values:
        """Read rows `top` to `bottom`: values (rows, width), colours as 0xRRGGBB.

        Transparent pixels are 0.

        Raises:
            InputError: the file is damaged, its values are no integers from 0 to `MAX_VALUE`,
                or pixels are half transparent.
        """
        array = self.stored(top, bottom)
        name = self.path.name
        if array.dtype == np.bool_:
            array = array.astype(np.uint8)
        if not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"mask {name} holds {array.dtype} values: save it with integers, one per class"
            )
        if array.size and (array.min() < 0 or array.max() >= MAX_VALUE):
            raise InputError(
                f"mask {name} holds values from {array.min()} to {array.max()}: save it with the "
                "class index of each pixel"
            )
        if self.bands == 1:
            return cast(Values, array)
        if (high := int(array.max(initial=0))) > 255:
            raise InputError(
                f"mask {name} has colours of more than 8 bits, with values such as {high}: convert "
                "it to 8 bits per channel, whose colours --rename (label_names) can name, or save "
                "class indices"
            )
        channels = [array[..., band].astype(np.int32) for band in range(self.bands)]
        if self.bands in {2, 4}:
            alpha = channels.pop()
            if ((alpha > 0) & (alpha < 255)).any():
                raise _half_transparent(self.path)
            channels = [np.where(alpha > 0, channel, 0) for channel in channels]
        if len(channels) == 1:
            return channels[0]
        return np.asarray(channels[0] << 16 | channels[1] << 8 | channels[2])

    def strips(self) -> Iterator[Values]:
        """Yield all rows, `STRIP` at a time, as `rows` does."""
        for top in range(0, self.height, STRIP):
            yield self.rows(top, min(top + STRIP, self.height))


def image_kind(path: Path) -> str | None:
    """Tell by its first bytes which kind of image a file is; None if none that `MAGIC` lists.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"mask {path} cannot be read: {error.strerror}") from error
    kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    return "lossy WebP" if kind == "WEBP" and b"VP8L" not in head else kind


def open_mask(path: Path) -> Mask:
    """Open a mask: PNG, TIFF, BMP, GIF, lossless WebP, or npy; its content tells which.

    Palette images give indices, and images of 1 bit 0 and 1. Of a TIFF, only the first page is
    read; others are its smaller levels.

    Raises:
        InputError: the file is missing, damaged, too large, lossy, in no such format, or holds
            several images of one size.
    """
    kind = image_kind(path)
    if kind is None:
        raise InputError(f"mask {path.name} is empty, or no PNG, TIFF, BMP, GIF, WebP or npy file")
    if kind in LOSSY:
        raise _lossy(path, kind)
    try:
        return _open_npy(path) if kind == "npy" else _open_image(path, kind)
    except InputError:
        raise
    except Exception as error:  # damaged files make their readers raise anything
        raise _damaged(path, error) from error


def _open_npy(path: Path) -> Mask:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    bands = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if bands not in {1, 2, 3, 4} or 0 in array.shape:
        raise InputError(
            f"mask {path.name} has the shape {array.shape}: it must be (height, width)"
        )
    return Mask(
        path, array.shape[1], array.shape[0], 1, (), bands,
        lambda top, bottom: np.asarray(array[top:bottom]),
    )  # fmt: skip


def _open_image(path: Path, driver: str) -> Mask:
    bilevel, ambiguous, orientation, alike = False, None, 1, 1
    names: tuple[str, ...] = ()
    if driver == "GTiff":
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            page = cast(tifffile.TiffPage, tiff.pages[0])
            compression = getattr(page.compression, "name", str(page.compression))
            if compression not in EXACT:
                raise _lossy(path, f"compressed by {compression}")
            tag = page.tags.get(ORIENTATION)
            orientation = int(tag.value) if tag else 1
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                if page.bitspersample != 1:
                    raise InputError(
                        f"mask {path.name} is stored with 0 as white: save it with class indices"
                    )
                bilevel = True
                # tifffile writes arrays of booleans so, without turning them round. Others may
                # have turned them, so that what they stored as 0 is white, and is meant as 1.
                if not page.software.startswith("tifffile"):
                    ambiguous = page.software or "an unnamed programme"
            names = stated_names(page.description)
            size = (page.imagewidth, page.imagelength)
            alike = sum(
                (other.imagewidth, other.imagelength) == size and not other.is_mask
                for other in pages_of(tiff)
            )
    with warnings.catch_warnings(), rasterio.Env(**ALONE):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        data = rasterio.open(path, driver=driver, sharing=False)
    width, height, bands = data.width, data.height, data.count
    colors: dict[int, tuple[int, ...]] = {}
    bits = data.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
    if data.colorinterp[0].name == "palette" and not bilevel:
        colors = data.colormap(1)
        if bits == "1" and colors[0][:3] == (0, 0, 0):  # GDAL's own, of black and white
            colors = {}
    if driver != "GTiff":
        if width * height > MAX_PIXELS:
            raise InputError(
                f"mask {path.name} has {width}×{height} px, more than {MAX_PIXELS // 10**6} "
                "million: save it as a tiled TIFF"
            )
        with open_picture(path) as image:
            orientation = int(image.getexif().get(ORIENTATION, 1))
            if image.size != (width, height):  # a GIF's picture need not cover its screen
                raise InputError(
                    f"mask {path.name} has {image.width}×{image.height} px, of which its picture "
                    f"covers {width}×{height}: save it as PNG"
                )
    if alike > 1:
        raise InputError(
            f"mask {path.name} holds {alike} images of {width}×{height} px, of which only the "
            "first would be read: is it one per class? Save one image, with the index of its "
            "class in every pixel"
        )
    if bands not in {1, 2, 3, 4}:
        raise InputError(f"mask {path.name} has {bands} channels: save it with one")
    palette = tuple((c[0], c[1], c[2]) for _, c in sorted(colors.items()))
    clear = [value for value, color in colors.items() if len(color) > 3 and not color[3]]
    half = [value for value, color in colors.items() if len(color) > 3 and 0 < color[3] < 255]
    if driver != "GTiff" and bands == 1 and data.nodata is not None:  # of grey PNGs
        clear.append(int(data.nodata))

    def read(top: int, bottom: int) -> NDArray[Any]:
        try:
            part = data.read(window=Window(0, top, width, bottom - top))
        except (RasterioError, OSError, MemoryError) as error:
            raise _damaged(path, error) from error
        if half and np.isin(part, half).any():
            raise _half_transparent(path)
        if clear:
            part = np.where(np.isin(part, clear), part.dtype.type(0), part)
        return np.asarray(part[0] if bands == 1 else np.moveaxis(part, 0, -1))

    mask = Mask(path, width, height, orientation, palette, bands, read, names)
    if ambiguous:
        raise _either_way(mask, ambiguous)
    return mask


def _either_way(mask: Mask, software: str) -> InputError:
    """Make the error of a mask of 1 bit that can be read in two ways, with what each would show."""
    share = sum(int(strip.sum()) for strip in mask.strips()) / (mask.width * mask.height)
    return InputError(
        f"mask {mask.path.name} has 1 bit per pixel with 0 as white (MINISWHITE), and it is not "
        f"known how {quoted(software)}, which wrote it, means that: {share:.0%} of it would be "
        f"labelled by its stored values, {1 - share:.0%} by what viewers show white. Save it with "
        "8 bits per pixel, as 0 and 1 or 0 and 255"
    )


def _half_transparent(path: Path) -> InputError:
    return InputError(f"mask {path.name} has half-transparent pixels: save it without antialiasing")


def _lossy(path: Path, how: str) -> InputError:
    return InputError(
        f"mask {path.name} is {how}, which blurs the classes: save it lossless, as PNG or as TIFF "
        "with deflate"
    )


def _damaged(path: Path, error: BaseException) -> InputError:
    reason = str(error) or type(error).__name__
    return InputError(
        f"mask {path.name} cannot be read ({reason}): is it damaged or incomplete? Save it again"
    )
