"""Augmentations of tissue images: turns, mirrors and changes of staining."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from shared.arrays import Float64, UInt8


def symmetry(array: UInt8, which: int) -> UInt8:
    """Apply a symmetry of the square: a turn by 90° · (which % 4), then a mirror if which > 3."""
    turned = np.rot90(array, which % 4)
    return np.ascontiguousarray(turned[:, ::-1] if which >= 4 else turned)


def stain_table(rng: np.random.Generator) -> UInt8:
    """Draw a staining: a table uint8 (256, 3) that scales each channel's optical density."""
    return density_table(np.exp(rng.normal(0, 0.10) + rng.normal(0, 0.06, 3)))


def density_table(gain: Sequence[float] | Float64) -> UInt8:
    """Make the table uint8 (256, 3) that scales the optical density of R, G and B by `gain`."""
    levels = (np.arange(256) + 1) / 256
    scaled = 256 * levels[:, None] ** np.asarray(gain)[None] - 1
    return np.asarray(np.clip(scaled, 0, 255).round(), np.uint8)


def restain(image: UInt8, table: UInt8) -> UInt8:
    """Change the staining of an image, uint8 RGB (h, w, 3), by such a table."""
    return np.asarray(cv2.LUT(image, table[:, None, :]), np.uint8)
