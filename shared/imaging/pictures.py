"""Plain images (PNG, JPEG and others), which are decoded whole."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import IO

import rasterio
from PIL import (  # the plugins too: processes that are forked later do not import them again
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from shared.errors import InputError

MAX_PLAIN_PIXELS = 500_000_000
"""Largest number of pixels of a plain image; decoded, it takes 4 bytes per pixel."""

ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
"""Options of GDAL that keep it from the files beside an image (.aux.xml, .ovr, .msk), which may
name any file or address."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
"""Pillow's names of the formats that are opened. It knows others that start programs (EPS) or
are hardly tested against hostile files."""

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for damaged files."""

_opening = threading.Lock()

with rasterio.Env():
    pass  # GDAL registers its drivers, which processes that are forked later inherit


def open_picture(
    source: Path | IO[bytes], name: str = "", formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open a picture without decoding it. All pictures are opened here.

    Args:
        source: the file.
        name: its name in messages; default: that of the path.
        formats: Pillow's names of the formats that it may have.

    Raises:
        InputError: it has more than `MAX_PLAIN_PIXELS`, or is animated.
        UnidentifiedImageError: it is in no such format.
        OSError, ValueError, SyntaxError: it is damaged.
    """
    with _opening:  # Pillow's own limit is lower
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    name = name or (source.name if isinstance(source, Path) else "a picture")
    if image.width * image.height > MAX_PLAIN_PIXELS:
        image.close()
        raise InputError(
            f"{name} is a plain image of {image.width}×{image.height} px; at most "
            f"{MAX_PLAIN_PIXELS // 10**6} megapixels are read whole: make it a pyramidal TIFF "
            "first (vips tiffsave --tile --pyramid)"
        )
    # What a JPEG holds besides is its preview or depth; pages of a TIFF may be its levels.
    if image.format in {"GIF", "PNG", "WEBP"} and getattr(image, "is_animated", False):
        image.close()
        raise InputError(
            f"{name} is animated, and only its first picture would be read: save that one alone"
        )
    return image


def read_picture(path: Path) -> Image.Image:
    """Read a plain image whole, in the mode in which the file stores it.

    Raises:
        InputError: the file is no image, is damaged, or has more than `MAX_PLAIN_PIXELS`.
    """
    try:
        image = open_picture(path)
        image.load()
        if image.format == "JPEG":
            check_jpeg(path)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path.name} cannot be opened: it is neither a slide nor an image. It may be "
            "damaged, incomplete or of an unknown format: copy it again, or convert it"
        ) from error
    except PICTURE_ERRORS as error:
        raise InputError(
            f"{path.name} cannot be opened: {error}. The file is damaged or incomplete: copy it "
            "again from its source"
        ) from error
    return image


ROWS = 1024
"""Rows of a JPEG that are checked at a time."""


def check_jpeg(path: Path) -> None:
    """Raise `InputError` if pixels of a JPEG are lost, as far as libjpeg notices.

    Pillow and OpenCV fill them with grey.
    """
    strict = {"GDAL_ERROR_ON_LIBJPEG_WARNING": "YES", "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": "YES"}
    try:
        with warnings.catch_warnings(), rasterio.Env(**strict, **ALONE):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="JPEG", sharing=False) as data:
                for top in range(0, data.height, ROWS):
                    data.read(1, window=Window(0, top, data.width, min(ROWS, data.height - top)))
    except RasterioError as error:
        if "Corrupt JPEG data" in str(error.__cause__ or error):
            raise InputError(
                f"{path.name} is damaged: pixels of it are lost. Copy it again from its source"
            ) from error
