"""Leakage: tests whether a generator copies its training images."""

from __future__ import annotations

from bisect import bisect_left
from math import comb

import numpy as np
from numpy.typing import NDArray

from services.evaluate.coverage import squared_distances, squared_radii
from services.evaluate.frechet import as_features
from shared.arrays import Float64
from shared.contracts.evaluate import Leakage

TAIL = 0.01
"""Quantile of the held-out images' relative distances, below which an image counts as a copy."""

SIGNIFICANCE = 0.05
"""Greatest chance that a generator that does not copy is reported as copying."""


def authenticity(
    synthetic: NDArray[np.floating],
    train: NDArray[np.floating],
    held_out: NDArray[np.floating],
) -> Leakage:
    """Test whether synthetic images are nearer to training images than held-out real images are.

    The relative distance of an image x is d(x, t) / d(t, t'), where t is the training image
    nearest to x, and t' is the training image nearest to t. All figures assume that the images
    of a set are independent.

    Args:
        synthetic: features (n, dim) of synthetic images.
        train: features (t, dim) of the generator's training images, t at least 2.
        held_out: features (m, dim) of real images from slides outside the training set.

    Returns:
        `authentic`, `authentic_held_out`: share of the synthetic and of the held-out images with
        a relative distance above 1 (AuthPct, Alaa et al. 2022).
        `excess_copies`: share of copies minus the share expected by chance, at least 0. A copy is a
        synthetic image whose relative distance is below the lowest 1 % of the held-out distances
        (below the lowest one, if m is under 199).
        `excess_bound`: 95 % bound of that excess for a generator that does not copy.
        `significant`: whether the excess is above this bound.
        `c_t`: C_T of Meehan et al. (2020), the Mann-Whitney U of distances as a standard score;
        well below 0 if synthetic images are nearer to training images than held-out ones are.

    Raises:
        ValueError: `train` has fewer than 2 features, the arrays differ in dim, or a feature is
            NaN or infinite.
    """
    generated, known, fresh = as_features(1, synthetic=synthetic, train=train, held_out=held_out)
    if len(known) < 2:
        raise ValueError(f"train: need at least 2 features, not {len(known)}")
    (radii,) = np.sqrt(squared_radii(known, (1,)))
    distance, relative = _nearest(generated, known, radii)
    distance_fresh, relative_fresh = _nearest(fresh, known, radii)
    n, m = len(generated), len(fresh)
    rank = max(1, int(TAIL * (m + 1)))
    copies = int((relative < np.sort(relative_fresh)[rank - 1]).sum())
    expected = rank / (m + 1)
    most = bisect_left(range(n + 1), -SIGNIFICANCE, key=lambda x: -_chance(x + 1, n, m, rank))
    return Leakage(
        authentic=float((relative > 1).mean()),
        authentic_held_out=float((relative_fresh > 1).mean()),
        excess_copies=max(0.0, copies / n - expected),
        excess_bound=max(0.0, most / n - expected),
        significant=copies > most,
        c_t=_rank_score(distance, distance_fresh),
    )


def _nearest(queries: Float64, known: Float64, radii: Float64) -> tuple[Float64, Float64]:
    """Return each query's distance to the nearest known row, and that distance ÷ the row's radius.

    Args:
        queries: (n, dim).
        known: (t, dim).
        radii: (t,) distance of each known row to its own nearest other row.

    Returns:
        Two arrays (n,).
    """
    rows, squares = np.empty(len(queries), np.int64), np.empty(len(queries))
    for part, chunk in squared_distances(queries, known):
        rows[part], squares[part] = chunk.argmin(1), chunk.min(1)
    distances = np.sqrt(squares)
    # A training image that occurs twice has radius 0, so only its exact copies are near to it.
    return distances, distances / np.maximum(radii[rows], np.finfo(np.float64).tiny ** 0.5)


def _chance(copies: int, n: int, m: int, rank: int) -> float:
    """Return the chance that `copies` or more of n values lie below the `rank`-th lowest of m.

    All n + m values come from one distribution. The event happens if fewer than `rank` of the m
    values are among the lowest copies + rank - 1 values of all. Unlike a binomial test, this
    takes into account that the threshold is itself a random value.
    """
    lowest = copies + rank - 1
    ways = sum(comb(m, others) * comb(n, lowest - others) for others in range(rank))
    return ways / comb(n + m, lowest)


def _rank_score(one: Float64, other: Float64) -> float:
    """Return the Mann-Whitney U as a standard score, below 0 if `one` is lower than `other`."""
    ordered = np.sort(other)
    below, upto = (np.searchsorted(ordered, one, side) for side in ("left", "right"))
    n, m = len(one), len(other)
    u = (below + upto).sum() / 2  # ties count half
    return float((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
