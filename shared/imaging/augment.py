"""Augmentations that a tissue image can bear: turns, mirrors, another staining."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]


def symmetry(array: UInt8, which: int) -> UInt8:
    """Apply one of the 8 symmetries of the square: a turn by 90° · (which % 4), then a mirror."""
    turned = np.rot90(array, which % 4)
    return np.ascontiguousarray(turned[:, ::-1] if which >= 4 else turned)


def jitter_stain(image: UInt8, rng: np.random.Generator) -> UInt8:
    """Scale the optical density of each colour channel a little, as another staining would."""
    gain = np.exp(rng.normal(0, 0.10) + rng.normal(0, 0.06, 3))
    levels = (np.arange(256) + 1) / 256
    table = np.clip(256 * levels[:, None] ** gain[None] - 1, 0, 255).round().astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[:, None, :]), np.uint8)
