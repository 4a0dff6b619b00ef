"""Fréchet distance between two sets of features (Heusel et al. 2017), in float64."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from shared.arrays import Float64, Int64

FORMAT = "heterotissue-frechet-1"
"""Name and version of the file format of reference statistics."""


def as_features(minimum: int, **named: NDArray[np.floating]) -> list[Float64]:
    """Check arrays of features (n, dim), and convert them to float64.

    Raises:
        ValueError: an array has fewer than `minimum` rows or another dim than the first one, or
            holds NaN or infinity.
    """
    checked: list[Float64] = []
    for name, array in named.items():
        if array.ndim != 2 or len(array) < minimum:
            raise ValueError(f"{name}: need features ({minimum} or more, dim), not {array.shape}")
        if checked and array.shape[1] != checked[0].shape[1]:
            raise ValueError(f"{name}: dim is {array.shape[1]}, not {checked[0].shape[1]}")
        broken = int((~np.isfinite(array)).any(1).sum())
        if broken:
            raise ValueError(f"{name}: {broken} of {len(array)} rows are not finite")
        checked.append(np.asarray(array, np.float64))
    return checked


class Moments:
    """Mean and covariance of features that arrive in batches.

    Attributes:
        count: number of features so far.
        mean: their mean, float64 (dim,).
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float64 = np.zeros(dim)
        self._scatter: Float64 = np.zeros((dim, dim))

    @classmethod
    def of(cls, count: int, mean: Float64, covariance: Float64) -> Moments:
        """Restore moments from the number, the mean and the unbiased covariance of the features."""
        moments = cls(len(mean))
        moments.count, moments.mean = count, mean
        moments._scatter = covariance * (count - 1)
        return moments

    def update(self, features: NDArray[np.floating]) -> Moments:
        """Add a batch of features (n, dim) by the formula of Chan, Golub and LeVeque (1979)."""
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
    def covariance(self) -> Float64:
        """Unbiased covariance, float64 (dim, dim). Raises `ValueError` below two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, not {self.count}")
        return self._scatter / (self.count - 1)


def gaussian_distance(mean: Float64, covariance: Float64, other: Float64, spread: Float64) -> float:
    """Squared Fréchet distance of the Gaussians N(mean, covariance) and N(other, spread).

    d² = |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1^½ Σ2 Σ1^½)^½), clipped to 0 (Dowson and Landau 1982).
    The matrix under the last root is symmetric, so its eigenvalues are real even if a covariance
    is singular (fewer features than dimensions).
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ spread @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    distance = np.square(mean - other).sum() + np.trace(covariance) + np.trace(spread)
    return max(0.0, float(distance - 2 * overlap))


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance of two Gaussians, given by their moments."""
    return gaussian_distance(one.mean, one.covariance, other.mean, other.covariance)


def _factor(features: Float64, counts: Int64) -> tuple[Float64, Float64]:
    """Return the mean (dim,) and a factor R of the covariance RᵀR of repeated features.

    Row i of `features` counts `counts[i]` times.
    """
    total = counts.sum()
    mean = counts @ features / total
    rows = np.sqrt(counts / (total - 1))[:, None] * (features - mean)
    if len(rows) > rows.shape[1]:
        rows = np.asarray(np.linalg.qr(rows, mode="r"))
    return mean, rows


def _between(one: tuple[Float64, Float64], other: tuple[Float64, Float64]) -> float:
    """Return the squared Fréchet distance of two Gaussians, given as `_factor` returns them.

    tr (Σ1Σ2)^½ is the nuclear norm of R1 R2ᵀ. This matrix is small if there are few features,
    and no root is taken of eigenvalues that are only rounding noise.
    """
    (mean, rows), (centre, columns) = one, other
    overlap = np.linalg.svd(rows @ columns.T, compute_uv=False).sum()
    distance = np.square(mean - centre).sum() + np.square(rows).sum() + np.square(columns).sum()
    return max(0.0, float(distance - 2 * overlap))


def distance_of(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Squared Fréchet distance of two arrays of features, (n, dim) and (m, dim)."""
    first, second = as_features(2, one=one, other=other)
    return _between(
        _factor(first, np.ones(len(first), np.int64)),
        _factor(second, np.ones(len(second), np.int64)),
    )


def bootstrap(
    one: NDArray[np.floating],
    other: NDArray[np.floating],
    draws: int,
    rng: np.random.Generator,
    *,
    groups_one: Int64,
    groups_other: Int64,
) -> tuple[float, float]:
    """Return the 90 % bootstrap interval of the squared Fréchet distance, (low, high).

    Whole slides are drawn with replacement, because images of one slide are not independent;
    so a side that has a single slide does not vary. A draw has fewer distinct images than the
    data, and fewer images give a greater distance. Therefore the mean excess of the draws over
    the distance of the data is subtracted from the percentiles.

    Args:
        one, other: features (n, dim) and (m, dim).
        draws: number of resamples, at least 1.
        rng: generator that draws the slides.
        groups_one, groups_other: number of each feature's slide, (n,) and (m,).

    Raises:
        ValueError: `draws` is below 1, or the groups do not fit the features.
    """
    sides = []
    for features, groups in zip(
        as_features(2, one=one, other=other), (groups_one, groups_other), strict=True
    ):
        if groups.shape != (len(features),):
            raise ValueError(
                f"need one group per feature: {len(features)} features, groups {groups.shape}"
            )
        sides.append((features, np.unique(groups, return_inverse=True)[1]))
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least 1 draw, not {draws}")

    def resample(features: Float64, slides: Int64) -> tuple[Float64, Float64]:
        number = int(slides.max()) + 1
        drawn = np.bincount(rng.integers(number, size=number), minlength=number)[slides]
        return _factor(features[drawn > 0], drawn[drawn > 0])

    distances = [_between(*(resample(*side) for side in sides)) for _ in range(draws)]
    low, high = np.quantile(distances, (0.05, 0.95)) - np.mean(distances) + distance_of(one, other)
    return max(0.0, float(low)), float(high)


@dataclass(frozen=True)
class Statistics:
    """Moments of the features of a reference set, and the origin of these features.

    Attributes:
        moments: mean and covariance of the features.
        encoder: name of the encoder that made the features.
        source: description of the images, for people.
        size: side of the images, pixels.
        mpp: resolution of the images, µm per pixel.
    """

    moments: Moments
    encoder: str
    source: str
    size: int
    mpp: float

    def distance(self, moments: Moments, *, encoder: str, size: int, mpp: float) -> float:
        """Return the squared Fréchet distance of other images to the reference.

        Raises:
            ValueError: the other images have another encoder or size, or their mpp differs by
                more than 5 %.
        """
        if encoder != self.encoder:
            raise ValueError(
                f"features of {encoder!r} cannot be compared with those of {self.encoder!r}"
            )
        if size != self.size or abs(mpp / self.mpp - 1) > 0.05:
            raise ValueError(
                f"images of {size} px at {mpp} µm per pixel cannot be compared with those of "
                f"{self.size} px at {self.mpp}"
            )
        return frechet_distance(self.moments, moments)


def save_statistics(moments: Moments, *, encoder: str, source: str, size: int, mpp: float) -> bytes:
    """Serialize reference statistics as safetensors, with their origin as JSON in the metadata."""
    tensors = {  # contiguous, because safetensors ignores strides
        "mean": np.ascontiguousarray(moments.mean),
        "covariance": np.ascontiguousarray(moments.covariance),
    }
    about = {
        "format": FORMAT, "n": moments.count, "encoder": encoder, "source": source,
        "size": size, "mpp": mpp, "sha256": _digest(tensors),
    }  # fmt: skip
    return bytes(safetensors.numpy.save(tensors, {"statistics": json.dumps(about)}))


def load_statistics(data: bytes) -> Statistics:
    """Read the bytes that `save_statistics` returned.

    Raises:
        ValueError: the bytes have another format, or are damaged.
    """
    try:
        tensors = safetensors.numpy.load(data)
        # safetensors reads metadata only from a file on disk, so parse the header here.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["statistics"])
        form, intact = about["format"], about["sha256"] == _digest(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a file of Fréchet statistics, or damaged: {error}") from error
    if form != FORMAT:
        raise ValueError(f"Fréchet statistics of format {form!r}, not {FORMAT!r}")
    if not intact:
        raise ValueError("Fréchet statistics are damaged: their checksum differs")
    moments = Moments.of(about["n"], tensors["mean"], tensors["covariance"])
    return Statistics(moments, about["encoder"], about["source"], about["size"], about["mpp"])


def _digest(tensors: dict[str, Float64]) -> str:
    return hashlib.sha256(tensors["mean"].tobytes() + tensors["covariance"].tobytes()).hexdigest()
