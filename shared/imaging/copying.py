"""Whether an image copies a crop that it was given."""

from __future__ import annotations

import cv2
import numpy as np

from shared.arrays import Float32, UInt8
from shared.imaging.augment import symmetry

BLOCK = 16
"""Side of the blocks of a crop that are searched for, in px; smaller ones recur by chance."""

TEXTURED = 4.0
"""Least standard deviation of the grey levels (0 to 255) of a block that is searched for."""

COPIED = 0.95
"""Least normalized cross-correlation of a block with its copy."""

CHUNK = 20_000_000
"""Correlations held at once."""


def crop_copying(image: UInt8, crop: UInt8) -> float:
    """Share of a crop's textured blocks, of 16 × 16 px, that reappear in an image.

    A block reappears if any position of the image correlates with it, in grey levels and
    in one of the 8 symmetries of the square. Smooth blocks are met by chance too: compare
    with images that were made from other crops.

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
    blocks = blocks[blocks.std((1, 2)) >= TEXTURED]
    if not len(blocks):
        return 0.0
    wanted = _normalized(np.stack([symmetry(b, which) for b in blocks for which in range(8)]))
    windows = np.lib.stride_tricks.sliding_window_view(grey, (BLOCK, BLOCK))
    best = np.full(len(wanted), -1, np.float32)
    step = max(1, CHUNK // (len(wanted) * windows.shape[1]))
    for row in range(0, len(windows), step):
        # a product of matrices: far faster than a search for each block with matchTemplate
        found = wanted @ _normalized(windows[row : row + step]).T
        np.maximum(best, found.max(1), out=best)
    return float((best.reshape(-1, 8).max(1) >= COPIED).mean())


def _grey(name: str, image: UInt8) -> UInt8:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name}: need uint8 (height, width, 3), not {image.dtype} {image.shape}")
    if min(image.shape[:2]) < BLOCK:
        raise ValueError(f"{name}: {image.shape[:2]} px are less than a block of {BLOCK}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _normalized(blocks: UInt8) -> Float32:
    """Turn blocks (..., 16, 16) into rows (n, 256) of mean 0 and norm 1, or 0 where even."""
    rows = blocks.reshape(-1, BLOCK * BLOCK).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-3), np.float32)
