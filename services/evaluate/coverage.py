"""Precision and density measure the fidelity of images, recall and coverage their diversity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import as_features
from shared.arrays import Float64

PRECISION_NEIGHBOURS = 3
"""Number k of neighbours for precision and recall (Kynkäänniemi et al. 2019)."""

COVERAGE_NEIGHBOURS = 5
"""Number k of neighbours for density and coverage (Naeem et al. 2020)."""

DISTANCES_AT_ONCE = 2_000_000
"""Greatest number of distances in one chunk, which bounds the memory."""


def squared_distances(rows: Float64, columns: Float64) -> Iterator[tuple[slice, Float64]]:
    """Yield squared Euclidean distances of rows (n, dim) to columns (m, dim), in chunks of rows.

    Yields:
        The slice of rows, and float64 (rows of the chunk, m).
    """
    centre = columns.mean(0)  # smaller numbers lose fewer digits in the subtraction below
    rows, columns = rows - centre, columns - centre
    norms = np.square(columns).sum(1)
    step = max(1, DISTANCES_AT_ONCE // len(columns))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scale = np.square(rows[part]).sum(1)[:, None] + norms
        squares = scale - 2 * (rows[part] @ columns.T)
        squares[squares < 1e-12 * scale] = 0  # rounding gives equal features a distance
        yield part, squares


def squared_radii(features: Float64, neighbours: tuple[int, ...]) -> Float64:
    """Return each feature's squared distance to its k-th neighbour, per k: (len(neighbours), n)."""
    radii = np.empty((len(neighbours), len(features)))
    for part, squares in squared_distances(features, features):
        # Index k is the k-th neighbour, because each feature is its own neighbour 0.
        radii[:, part] = np.partition(squares, neighbours, axis=1)[:, neighbours].T
    return radii


class ManifoldScores(NamedTuple):
    """Scores that compare two sets of features by balls around the features.

    The ball of a feature reaches to the k-th nearest other feature of the same set.

    Attributes:
        precision: share of synthetic features in at least one real ball, 0 to 1 (Kynkäänniemi et
            al. 2019, eq. 2).
        recall: share of real features in at least one synthetic ball, 0 to 1 (ibid.).
        density: mean number of real balls around a synthetic feature, divided by k; 1 is ideal,
            and more is possible (Naeem et al. 2020).
        coverage: share of real balls that hold a synthetic feature, 0 to 1 (ibid.).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> ManifoldScores:
    """Compute precision, recall, density and coverage of synthetic features.

    Args:
        real: features (n, dim), n at least 6.
        synthetic: features (m, dim), m at least 6.

    Raises:
        ValueError: there are too few features, they differ in dim, or one is NaN or infinite.
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
