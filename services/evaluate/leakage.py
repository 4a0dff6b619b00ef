"""Leakage: whether synthetic images copy training images."""

from __future__ import annotations

from bisect import bisect_left
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import squared_distances, squared_radii
from services.evaluate.frechet import as_features
from shared.arrays import Float64

TAIL = 0.01
"""Share of held-out real images that lie as near to a training image as a copy does."""

SIGNIFICANCE = 0.05


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


def _nearest(queries: Float64, known: Float64, radii: Float64) -> tuple[Float64, Float64]:
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


def _rank_score(one: Float64, other: Float64) -> float:
    """Standard score of the Mann-Whitney U; below 0 where `one` is lower than `other`."""
    ordered = np.sort(other)
    below, upto = (np.searchsorted(ordered, one, side) for side in ("left", "right"))
    n, m = len(one), len(other)
    u = (below + upto).sum() / 2  # ties count half
    return float((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
