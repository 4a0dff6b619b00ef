"""PNG, the format of regions and synthetic images, and of their label maps."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from shared.arrays import UInt8
from shared.errors import InputError

PNG_LEVEL = 4
"""zlib's compression level, 0 to 9, of all PNGs but those with a palette."""


def encode_png(array: UInt8) -> bytes:
    """Encode uint8 (h, w) or RGB (h, w, 3) as PNG; the same array gives the same bytes."""
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    if not done:
        raise InputError(f"cannot write an array of shape {array.shape} as PNG")
    return data.tobytes()


def decode_png(data: bytes) -> UInt8:
    """Decode a PNG to uint8 RGB (h, w, 3), or to uint8 (h, w) if it has one channel.

    Raises:
        InputError: the data cannot be decoded.
    """
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if array is None:
        raise InputError("an image in the store is broken: make it again")
    return np.asarray(
        cv2.cvtColor(array, cv2.COLOR_BGR2RGB) if array.ndim == 3 else array, np.uint8
    )


def encode_palette_png(
    labels: UInt8, colors: Sequence[tuple[int, int, int]], *, transparent: int | None = None
) -> bytes:
    """Encode a label map, uint8 (h, w), as an indexed PNG.

    Args:
        labels: label of each pixel, which is its index in the palette.
        colors: the palette: RGB (0 to 255) of each label.
        transparent: label whose pixels are transparent; None: no label.
    """
    picture = Image.fromarray(labels, mode="L")
    picture.putpalette([channel for color in colors for channel in color])
    body = io.BytesIO()
    picture.save(body, "PNG", transparency=transparent)
    return body.getvalue()
