"""Finds the tissue of a slide, and tells whether its stain looks like H&E."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.tile_images import NEAR_BLACK

Mask = NDArray[np.bool_]
Stain = Literal["h&e", "other", "unknown"]

MPP = 8.0
"""Resolution of the tissue mask, µm per pixel; huge slides have a coarser mask."""

MIN_AREA = 100**2
"""Area of the smallest speck of tissue, or hole in it, that is kept, µm²."""

MIN_SATURATION, MAX_SATURATION = 0.06, 0.2
"""Bounds of the threshold on saturation (0 to 1) that separates tissue from glass."""

GLASS_CONTRAST = 2.5
"""Smallest ratio of the saturations of tissue and glass, medians."""


def ink_mask(rgb: UInt8) -> Mask:
    """Find pen marks, by colours that H&E does not have.

    These are saturated green, blue and cyan, pure red, and black.

    Args:
        rgb: uint8 (h, w, 3).

    Returns:
        bool (h, w).
    """
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

    Tissue is where the saturation of the median-filtered image is above Otsu's threshold. Ink
    and small specks are removed, and small holes are filled. The threshold is bounded, because
    Otsu's method splits even an empty field into two parts, and a field without glass too.

    Args:
        rgb: thumbnail of the slide, uint8 (h, w, 3).
        mpp: resolution of `rgb`, µm per pixel.

    Returns:
        bool (h, w), true for tissue.
    """
    smooth = np.asarray(cv2.medianBlur(np.ascontiguousarray(rgb), 5), np.uint8)
    ink = ink_mask(smooth)
    saturation = rgb2hsv(smooth)[..., 1]
    clean = saturation[~ink]
    if clean.size == 0:
        return np.zeros(rgb.shape[:2], np.bool_)
    limit = max(MIN_SATURATION, min(float(threshold_otsu(clean)), MAX_SATURATION))
    pale, strong = clean[clean <= limit], clean[clean > limit]
    if pale.size and strong.size:
        level = float(np.median(pale))
        if level > MIN_SATURATION and np.median(strong) < GLASS_CONTRAST * level:
            limit = MIN_SATURATION  # the threshold parts pale tissue from strong: there is no glass
    mask = (saturation > limit) & ~ink
    pixels = max(4, round(MIN_AREA / mpp**2))
    mask = remove_small_objects(mask, max_size=pixels)
    if not mask.any():
        return np.asarray(mask, np.bool_)  # a small empty field is no hole
    return np.asarray(remove_small_holes(mask, max_size=pixels), np.bool_)


def find_tissue(name: str, rgb: UInt8, mpp: float, any_stain: bool) -> tuple[Mask, Stain]:
    """Find the tissue of a slide, and check that there is some, stained as wanted.

    Args:
        name: name of the slide's file.
        rgb: thumbnail of the slide, uint8 (h, w, 3).
        mpp: resolution of `rgb`, µm per pixel.
        any_stain: whether other stains than H&E are wanted.

    Returns:
        The tissue mask, bool (h, w), and the stain.

    Raises:
        InputError: the slide is almost black, shows no tissue, or tissue of another stain.
    """
    if (high := int(rgb.max())) < NEAR_BLACK:
        raise InputError(
            f"{name} is almost black: its highest value is {high} of 255. If it holds data of 10 "
            "to 14 bits in samples of 16, scale them to 8 bits (0 to 255); else leave it out"
        )
    tissue = tissue_mask(rgb, mpp)
    stain = stain_of(rgb, tissue)
    if stain == "other" and not any_stain:
        raise InputError(
            f"{name} does not look like H&E (fluorescence, IHC or another stain?): leave it "
            "out, or ingest it with --any-stain (allow_other_stains)"
        )
    if not tissue.any() and _is_grey(rgb):
        raise InputError(
            f"{name} is a grey picture, but tissue is found by its colour: export it in colour, or "
            "leave it out"
        )
    if not tissue.any():
        raise InputError(f"{name} shows no tissue: leave it out")
    return tissue, stain


def _is_grey(rgb: UInt8) -> bool:
    """Tell whether a picture shows something, and all of it in grey."""
    return bool((np.ptp(rgb, axis=2) < 8).all() and (rgb.mean(2) < 200).mean() > 0.01)


def stain_of(rgb: UInt8, tissue: Mask) -> Stain:
    """Tell whether the tissue is stained with H&E: pink to violet on a bright background.

    Args:
        rgb: thumbnail of the slide, uint8 (h, w, 3).
        tissue: tissue mask of the thumbnail, bool (h, w).

    Returns:
        'h&e' or 'other'; 'unknown' if there is too little coloured tissue.
    """
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
