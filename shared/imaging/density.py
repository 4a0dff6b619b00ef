"""Optical density of pixels: proportional to the amount of stain (Beer-Lambert law)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float64, UInt8

DENSITY: Float64 = -np.log10((np.arange(256) + 1) / 256)
"""Optical density of each intensity 0 to 255: 2.41 for black, 0 for white."""


def optical_density(pixels: UInt8) -> Float64:
    """Return the optical density -log10((I + 1) / 256) of each value, of the shape of `pixels`."""
    return DENSITY[pixels]


def mean_density(image: UInt8, mask: NDArray[np.bool_] | None = None) -> Float64:
    """Return the mean optical density of red, green and blue, (3,); 0 where the mask is empty.

    Args:
        image: uint8 RGB (h, w, 3).
        mask: bool (h, w), true for the pixels that count; None: all pixels.
    """
    counted = None if mask is None else mask.astype(np.uint8)
    return np.array(cv2.mean(cv2.LUT(image, DENSITY), counted)[:3])
