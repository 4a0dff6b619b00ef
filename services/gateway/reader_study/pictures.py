"""Pictures that differ only in their content: one size, one encoder, no metadata.

Real and synthetic images go through the same steps. Both are cut, and neither is ever
resampled, since interpolation leaves its own traces.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from shared.arrays import UInt8

QUALITY = 95


def encode(image: UInt8, side: int) -> bytes:
    """Cut the middle of an image and encode it as JPEG.

    Fixed quality, full colour resolution and the standard's Huffman tables: the headers of
    all pictures of a side are the same bytes.

    Args:
        image: uint8 RGB (height, width, 3), at least `side` each way.
        side: of the picture, pixels.
    """
    height, width = image.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    window = np.ascontiguousarray(image[top : top + side, left : left + side])
    body = io.BytesIO()
    Image.fromarray(window).save(body, "JPEG", quality=QUALITY, subsampling=0, optimize=False)
    return body.getvalue()


def pad(pictures: Sequence[bytes]) -> list[bytes]:
    """Make JPEGs equally long, with zeros after the end of the image, which decoders ignore."""
    length = max(map(len, pictures))
    return [data.ljust(length, b"\0") for data in pictures]
