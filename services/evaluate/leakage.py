"""Leakage: whether synthetic images copy training images, or the crops they were given."""

from __future__ import annotations

from bisect import bisect_left
from math import comb
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import squared_distances, squared_radii
from services.evaluate.frechet import Float, as_features
from shared.imaging.augment import symmetry

UInt8 = NDArray[np.uint8]

TAIL = 0.01
"""Share of held-out real images that lie as near to a training image as a copy does."""

SIGNIFICANCE = 0.05

BLOCK = 16
"""Side of the blocks of a crop that are searched for, in px; smaller ones recur by chance."""

TEXTURED = 4.0
"""Least standard deviation of the grey levels (0 to 255) of a block that is searched for."""

COPIED = 0.95
"""Least normalized cross-correlation of a block with its copy."""

CHUNK = 20_000_000
"""Correlations held at once."""


def authenticity(
    synthetic: NDArray[np.floating],
    train: NDArray[np.floating],
    held_out: NDArray[np.floating],
) -> dict[str, Any]:
    """Tell by nearest training images whether a generator copies.

    Distances are taken relative to that of the training image to its own nearest other one.

    Args:
        synthetic: features (n, dim).
        train: features (t, dim) of the real images learnt from, t at least 2.
        held_out: features (m, dim) of real images of other slides.

    Returns:
        `authentic`, `authentic_held_out`: share with a relative distance above 1 (AuthPct,
        Alaa et al. 2022), of synthetic and, to compare, of held-out images;
        `excess_copies`: share of synthetic images nearer than the lowest 1 % of held-out
        ones (below 99 of them: than the lowest), less the share expected by chance, at
        least 0; `excess_bound`: the excess that an honest generator stays within 95 times
        of 100; `significant`: whether it is passed;
        `c_t`: C_T of Meehan et al. (2020), the Mann-Whitney U of distances as a standard
        score: well below 0 where synthetic images are nearer to training images than new
        real ones are. All take the images of a set for independent.
    """
    made, known, fresh = as_features(1, synthetic=synthetic, train=train, held_out=held_out)
    if len(known) < 2:
        raise ValueError(f"train: need at least 2 features, not {len(known)}")
    (radii,) = np.sqrt(squared_radii(known, (1,)))
    distance, relative = _nearest(made, known, radii)
    distance_fresh, relative_fresh = _nearest(fresh, known, radii)
    n, m = len(made), len(fresh)
    rank = max(1, int(TAIL * (m + 1)))
    copies = int((relative < np.sort(relative_fresh)[rank - 1]).sum())
    expected = rank / (m + 1)
    most = bisect_left(range(n + 1), -SIGNIFICANCE, key=lambda x: -_chance(x + 1, n, m, rank))
    return {
        "authentic": float((relative > 1).mean()),
        "authentic_held_out": float((relative_fresh > 1).mean()),
        "excess_copies": max(0.0, copies / n - expected),
        "excess_bound": max(0.0, most / n - expected),
        "significant": copies > most,
        "c_t": _rank_score(distance, distance_fresh),
    }


def _nearest(queries: Float, known: Float, radii: Float) -> tuple[Float, Float]:
    """Distance of each query to the nearest of `known`, and that over the latter's radius."""
    rows, squares = np.empty(len(queries), np.int64), np.empty(len(queries))
    for part, chunk in squared_distances(queries, known):
        rows[part], squares[part] = chunk.argmin(1), chunk.min(1)
    distances = np.sqrt(squares)
    # training images that occur twice have no radius: only their exact copies are near
    return distances, distances / np.maximum(radii[rows], np.finfo(np.float64).tiny ** 0.5)


def _chance(copies: int, n: int, m: int, rank: int) -> float:
    """Chance that `copies` or more of n lie below the `rank`-th lowest of m others alike.

    That is, that fewer than `rank` of the others are among the lowest copies + rank - 1 of
    all. Unlike a binomial, this knows that the threshold itself was drawn.
    """
    lowest = copies + rank - 1
    ways = sum(comb(m, others) * comb(n, lowest - others) for others in range(rank))
    return ways / comb(n + m, lowest)


def _rank_score(one: Float, other: Float) -> float:
    """Standard score of the Mann-Whitney U; below 0 where `one` is lower than `other`."""
    ordered = np.sort(other)
    below, upto = (np.searchsorted(ordered, one, side) for side in ("left", "right"))
    n, m = len(one), len(other)
    u = (below + upto).sum() / 2  # ties count half
    return float((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))


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


def _normalized(blocks: UInt8) -> NDArray[np.float32]:
    """Turn blocks (..., 16, 16) into rows (n, 256) of mean 0 and norm 1, or 0 where even."""
    rows = blocks.reshape(-1, BLOCK * BLOCK).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-3), np.float32)
