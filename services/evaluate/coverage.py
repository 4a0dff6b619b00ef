"""Fidelity and diversity, separately: how two sets of features fill each other's neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import as_features
from shared.arrays import Float64

PRECISION_NEIGHBOURS = 3
"""k of precision and recall (Kynkäänniemi et al. 2019)."""

COVERAGE_NEIGHBOURS = 5
"""k of density and coverage (Naeem et al. 2020)."""

DISTANCES_AT_ONCE = 2_000_000
"""Distances held in memory."""


def squared_distances(rows: Float64, columns: Float64) -> Iterator[tuple[slice, Float64]]:
    """Yield |a - b|² of rows (n, dim) and columns (m, dim), in chunks of rows (chunk, m)."""
    centre = columns.mean(0)  # small numbers lose less in the difference of squares below
    rows, columns = rows - centre, columns - centre
    norms = np.square(columns).sum(1)
    step = max(1, DISTANCES_AT_ONCE // len(columns))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scale = np.square(rows[part]).sum(1)[:, None] + norms
        squares = scale - 2 * (rows[part] @ columns.T)
        squares[squares < 1e-12 * scale] = 0  # rounding makes equal features differ
        yield part, squares


def squared_radii(features: Float64, neighbours: tuple[int, ...]) -> Float64:
    """Return squared distances of features to their k-th nearest others, (len(neighbours), n)."""
    radii = np.empty((len(neighbours), len(features)))
    for part, squares in squared_distances(features, features):
        # each feature is its own neighbour 0
        radii[:, part] = np.partition(squares, neighbours, axis=1)[:, neighbours].T
    return radii


class ManifoldScores(NamedTuple):
    """Scores by balls around each feature that reach to its k-th nearest neighbour of its set.

    Attributes:
        precision: share of synthetic features in some real ball (Kynkäänniemi et al. 2019, eq. 2).
        recall: share of real features in some synthetic ball (ibid.).
        density: real balls that a synthetic feature lies in, over k: 1 is ideal, and more is
            possible (Naeem et al. 2020).
        coverage: share of real balls that hold a synthetic feature (ibid.).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> ManifoldScores:
    """Score how two sets of features fill each other's neighbourhoods.

    Args:
        real: features (n, dim), n above 5.
        synthetic: features (m, dim), m above 5.
    """
    ks = (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS)
    first, second = as_features(max(ks) + 1, real=real, synthetic=synthetic)
    near, far = squared_radii(first, ks)
    (reach,) = squared_radii(second, ks[:1])
    precise = np.zeros(len(second), bool)
    recalled = inside = covered = 0
    for part, squares in squared_distances(first, second):
        precise |= (squares <= near[part, None]).any(0)
        recalled += int((squares <= reach).any(1).sum())
        balls = squares <= far[part, None]
        inside += int(balls.sum())
        covered += int(balls.any(1).sum())
    return ManifoldScores(
        precision=float(precise.mean()),
        recall=recalled / len(first),
        density=inside / (COVERAGE_NEIGHBOURS * len(second)),
        coverage=covered / len(first),
    )
