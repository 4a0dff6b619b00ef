"""Pictures that bodies give as PNG: crops and label maps."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.pictures import open_picture

MIN_CROP_SIDE = 8
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)


def read_crop(data: bytes, limit: int) -> UInt8:
    """Decode a PNG of a crop to uint8 RGB (side, side, 3). Raises `InputError` if it is unfit."""
    with open_png(data, limit) as image:
        if image.width != image.height or image.width < MIN_CROP_SIDE:
            raise InputError(
                f"a crop has {image.width}×{image.height} px: send a square of {MIN_CROP_SIDE} to "
                f"{limit} px"
            )
        return np.asarray(image.convert("RGB"), np.uint8)


def open_png(data: bytes, limit: int) -> Image.Image:
    """Decode a PNG whose width and height are at most `limit` pixels.

    Raises:
        InputError: the PNG is larger, or `data` is not a PNG.
    """
    try:
        image = open_picture(io.BytesIO(data), formats=("PNG",))
        if max(image.size) > limit:
            raise InputError(
                f"a picture has {image.width}×{image.height} px; at most {limit}×{limit} px are "
                "allowed"
            )
        image.load()
    except UNREADABLE as error:
        raise InputError("a picture is not a readable PNG: send a PNG in base64") from error
    return image
