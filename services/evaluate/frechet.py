"""Fréchet distance between two sets of features (Heusel et al. 2017), in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


class Moments:
    """Mean and covariance of features that come in a stream.

    Attributes:
        count: features seen.
        mean: float64 (dim,).
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float = np.zeros(dim)
        self._scatter: Float = np.zeros((dim, dim))

    def update(self, features: NDArray[np.floating]) -> Moments:
        """Add features (n, dim); batches are merged as by Chan, Golub and LeVeque (1979)."""
        batch = np.asarray(features, np.float64)
        added, mean = len(batch), batch.mean(0)
        centred = batch - mean
        gap = mean - self.mean
        total = self.count + added
        share = self.count * added / total
        self._scatter += centred.T @ centred + share * np.outer(gap, gap)
        self.mean = self.mean + gap * added / total
        self.count = total
        return self

    @property
    def covariance(self) -> Float:
        """Unbiased covariance, float64 (dim, dim); needs at least two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """d² = |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1^½ Σ2 Σ1^½)^½), at least 0.

    The root is taken of a symmetric matrix by its eigenvalues, so singular
    covariances (fewer features than dimensions) cause no complex numbers.
    """
    first, second = one.covariance, other.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ second @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    distance = np.square(one.mean - other.mean).sum() + np.trace(first) + np.trace(second)
    return max(0.0, float(distance - 2 * overlap))


def distance_of(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Fréchet distance of two arrays of features (n, dim) and (m, dim)."""
    dim = one.shape[1]
    return frechet_distance(Moments(dim).update(one), Moments(dim).update(other))
