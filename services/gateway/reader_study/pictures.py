"""Encodes pictures that differ only in their content: the same size, encoder and headers.

Real and synthetic images go through the same steps. Both may be cut, and neither is resampled,
because interpolation leaves visible traces.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from shared.arrays import UInt8

QUALITY = 95
"""JPEG quality of all pictures, 0 to 100."""


def encode(image: UInt8, side: int) -> bytes:
    """Cut the central square out of an image, and encode it as JPEG.

    Quality, colour resolution and Huffman tables are fixed, so all pictures of one size have
    the same headers.

    Args:
        image: uint8 RGB (height, width, 3), both at least `side`.
        side: side of the picture, pixels.
    """
    height, width = image.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    window = np.ascontiguousarray(image[top : top + side, left : left + side])
    body = io.BytesIO()
    Image.fromarray(window).save(body, "JPEG", quality=QUALITY, subsampling=0, optimize=False)
    return body.getvalue()


def pad(pictures: Sequence[bytes]) -> list[bytes]:
    """Append zeros, which decoders ignore, to JPEG files until all have the same length."""
    length = max(map(len, pictures))
    return [data.ljust(length, b"\0") for data in pictures]
