"""Staining of an image: mean and covariance of the optical density of its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import gaussian_distance
from shared.arrays import Float64, UInt8
from shared.imaging.density import optical_density


@dataclass(frozen=True)
class StainStatistics:
    """Mean and covariance of the optical density of some pixels.

    Attributes:
        mean: float64 (3,); red, green and blue.
        covariance: float64 (3, 3).
    """

    mean: Float64
    covariance: Float64


def stain_statistics(image: UInt8, mask: NDArray[np.bool_] | None) -> StainStatistics:
    """Measure the staining of an image, or of a part of it.

    Args:
        image: uint8 RGB (h, w, 3).
        mask: bool (h, w), true for the pixels to measure; None: all pixels.

    Raises:
        ValueError: a shape or dtype is wrong, or there are fewer than 2 pixels to measure.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"need a uint8 image (h, w, 3), not {image.dtype} {image.shape}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, but the image is {image.shape[:2]}")
    pixels = image.reshape(-1, 3) if mask is None else image[mask]
    if len(pixels) < 2:
        raise ValueError(f"a staining needs at least 2 pixels, not {len(pixels)}")
    density = optical_density(pixels)
    return StainStatistics(density.mean(0), np.cov(density, rowvar=False))


def stain_error(a: StainStatistics, b: StainStatistics) -> float:
    """Wasserstein-2 distance of two stainings as Gaussians, in units of optical density.

    This is the root of |Δμ|² plus the squared Bures distance of the covariances (Dowson and
    Landau 1982). It is 0 for equal stainings, and 0.3 if one channel lets half as much light
    through.
    """
    return float(np.sqrt(gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)))
