"""Finding the tissue of a slide, and whether its stain looks like H&E."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from shared.arrays import UInt8

Mask = NDArray[np.bool_]

MPP = 8.0
"""Resolution of the tissue mask, µm per pixel; coarser for huge slides."""

MIN_AREA = 100**2
"""Area of the smallest speck or hole that counts, µm²."""

MIN_SATURATION = 0.06
"""Lower bound of the threshold on saturation, 0 to 1."""


def ink_mask(rgb: UInt8) -> Mask:
    """Find pen marks: saturated green, blue, cyan, pure red or black ink, which H&E never has."""
    hsv = rgb2hsv(rgb)
    hue, saturation, value = hsv[..., 0] * 360, hsv[..., 1], hsv[..., 2]
    red, green, blue = (rgb[..., i].astype(np.int16) for i in range(3))
    green_blue = (hue > 70) & (hue < 225) & (saturation > 0.15)
    pure_red = (red > 120) & (green < 90) & (blue < 90) & (red - blue > 70)
    black = (value < 0.25) & (saturation < 0.35)
    ink: Mask = green_blue | pure_red | black
    near = cv2.dilate(ink.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return np.asarray(near & ((green >= red - 10) | (green >= blue) | ink), np.bool_)


def tissue_mask(rgb: UInt8, mpp: float) -> Mask:
    """Find tissue on a thumbnail.

    Tissue is above Otsu's threshold on the saturation of a median-filtered image, without
    ink, small specks and small holes. The threshold is bounded, because Otsu's method splits
    blank fields too.

    Args:
        rgb: uint8 (h, w, 3).
        mpp: µm per pixel of `rgb`.

    Returns:
        bool (h, w).
    """
    smooth = np.asarray(cv2.medianBlur(np.ascontiguousarray(rgb), 5), np.uint8)
    ink = ink_mask(smooth)
    saturation = rgb2hsv(smooth)[..., 1]
    clean = saturation[~ink]
    if clean.size == 0 or clean.max() - clean.min() < 1e-3:
        return np.zeros(rgb.shape[:2], np.bool_)
    limit = max(MIN_SATURATION, min(float(threshold_otsu(clean)), 0.2))
    mask = (saturation > limit) & ~ink
    pixels = max(4, round(MIN_AREA / mpp**2))
    mask = remove_small_objects(mask, max_size=pixels)
    return np.asarray(remove_small_holes(mask, max_size=pixels), np.bool_)


def stain_of(rgb: UInt8, tissue: Mask) -> Literal["h&e", "other", "unknown"]:
    """Say whether the tissue's colours are those of H&E: pink to violet on a bright ground."""
    bright = float(np.median(rgb)) > 60
    if not bright:
        return "other"
    if tissue.sum() < 50:
        return "unknown"
    hsv = rgb2hsv(rgb[tissue][None])[0]
    hue = hsv[:, 0] * 360
    stained = hsv[:, 1] > 0.08
    if stained.sum() < 50:
        return "unknown"
    share = float(np.mean((hue[stained] > 225) | (hue[stained] < 8)))
    return "h&e" if share > 0.6 else "other"
