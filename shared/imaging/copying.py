"""A measure of how much of a crop an image copies."""

from __future__ import annotations

import cv2
import numpy as np

from shared.arrays import Float32, UInt8
from shared.imaging.augment import symmetry

BLOCK = 16
"""Side of the blocks of a crop that are searched for, pixels; smaller blocks recur by chance."""

MIN_TEXTURE = 4.0
"""Smallest standard deviation of the grey levels (0 to 255) of a block that is searched for."""

MIN_COPY_CORRELATION = 0.95
"""Smallest normalized cross-correlation of a block with its copy."""

CORRELATIONS_AT_ONCE = 20_000_000
"""Largest number of correlations that are held in memory at once."""


def crop_copying(image: UInt8, crop: UInt8) -> float:
    """Return the share of a crop's textured blocks, of 16 × 16 px, that reappear in an image.

    A block reappears if, in grey levels, one of its 8 turns and mirror images correlates with
    the image at any position by at least `MIN_COPY_CORRELATION`. Some blocks reappear by
    chance: compare the share with that of images made from other crops.

    Args:
        image: uint8 RGB (height, width, 3).
        crop: uint8 RGB (height, width, 3), cut into blocks from its upper left corner.

    Returns:
        A share from 0 to 1; 0 if no block has texture.
    """
    grey, pattern = _grey("image", image), _grey("crop", crop)
    height, width = (side // BLOCK * BLOCK for side in pattern.shape)
    tiles = pattern[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = tiles.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
    blocks = blocks[blocks.std((1, 2)) >= MIN_TEXTURE]
    if not len(blocks):
        return 0.0
    templates = _normalized(np.stack([symmetry(b, which) for b in blocks for which in range(8)]))
    windows = np.lib.stride_tricks.sliding_window_view(grey, (BLOCK, BLOCK))
    best = np.full(len(templates), -1, np.float32)
    step = max(1, CORRELATIONS_AT_ONCE // (len(templates) * windows.shape[1]))
    for row in range(0, len(windows), step):
        # One product of matrices is far faster than matchTemplate for each block.
        correlations = templates @ _normalized(windows[row : row + step]).T
        np.maximum(best, correlations.max(1), out=best)
    return float((best.reshape(-1, 8).max(1) >= MIN_COPY_CORRELATION).mean())


def _grey(name: str, image: UInt8) -> UInt8:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name}: need uint8 (height, width, 3), not {image.dtype} {image.shape}")
    if min(image.shape[:2]) < BLOCK:
        raise ValueError(f"{name}: {image.shape[:2]} px is smaller than a block of {BLOCK} px")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _normalized(blocks: UInt8) -> Float32:
    """Turn blocks (..., 16, 16) into rows (n, 256) of mean 0 and norm 1; flat blocks give zeros."""
    rows = blocks.reshape(-1, BLOCK * BLOCK).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-3), np.float32)
