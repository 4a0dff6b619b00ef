"""Fine detail of images: the power of optical density at high spatial frequencies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shared.arrays import UInt8
from shared.imaging.density import optical_density

FINE = 0.25
"""Cycles per pixel from which on a frequency is fine; a pixel grid shows at most 0.5 per axis."""


def fine_power(images: Iterable[UInt8]) -> float:
    """Return the mean power of the optical density of images beyond `FINE` cycles per pixel.

    The squared spectra of the three channels are summed over frequencies, under a Hann window, and
    divided by the number of pixels.

    Args:
        images: at least one, uint8 RGB (h, w, 3).
    """
    return float(np.mean([_fine_power(image) for image in images]))


def _fine_power(image: UInt8) -> float:
    height, width = image.shape[:2]
    density = optical_density(image)
    window = np.outer(np.hanning(height), np.hanning(width))[..., None]
    spectrum = np.fft.fft2((density - density.mean((0, 1))) * window, axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return float((np.abs(spectrum[frequency > FINE]) ** 2).sum() / (height * width))
