"""Staining of an image: the Gaussian distribution of its pixels in optical density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import gaussian_distance
from shared.arrays import Float64, UInt8

DENSITY: Float64 = -np.log10((np.arange(256) + 1) / 256)
"""Optical density of each level: 2.41 for black, 0 for white."""


def optical_density(pixels: UInt8) -> Float64:
    """Optical density of pixels (n, 3) by channel, -log10((I + 1) / 256) as by Beer and Lambert."""
    return DENSITY[pixels]


@dataclass(frozen=True)
class StainStatistics:
    """Moments of the optical density of some pixels.

    Attributes:
        mean: float64 (3,), red, green and blue.
        covariance: float64 (3, 3).
    """

    mean: Float64
    covariance: Float64


def stain_statistics(image: UInt8, mask: NDArray[np.bool_] | None) -> StainStatistics:
    """Measure the staining of an image (h, w, 3), or of its part where the mask (h, w) is true."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"need a uint8 image (h, w, 3), not {image.dtype} {image.shape}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]}")
    pixels = image.reshape(-1, 3) if mask is None else image[mask]
    if len(pixels) < 2:
        raise ValueError(f"a staining needs at least 2 pixels, not {len(pixels)}")
    density = optical_density(pixels)
    return StainStatistics(density.mean(0), np.cov(density, rowvar=False))


def stain_error(a: StainStatistics, b: StainStatistics) -> float:
    """Wasserstein-2 distance of two stainings taken as Gaussians, in units of optical density.

    The root of |Δμ|² and the squared Bures distance of the covariances (Dowson and Landau
    1982): 0 for the same staining, 0.3 where one channel lets half as much
    light through.
    """
    return float(np.sqrt(gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)))
