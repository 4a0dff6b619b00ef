"""Patches of glass, and patches out of focus, which may be left out of the features."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.arrays import UInt8
from shared.contracts.embed import EmbedRequest

WHITE = 220
"""Least value of all three channels of a white pixel."""


def white_share(image: UInt8) -> float:
    """Return the share of white pixels of an image, uint8 RGB (height, width, 3): 0 to 1."""
    return float((image.min(2) >= WHITE).mean())


def sharpness(image: UInt8) -> float:
    """Return the variance of the Laplacian of an image, uint8 RGB (height, width, 3).

    It is in squared grey levels, 0 or more: the usual measure of focus (Pech-Pacheco et al. 2000).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def faults(images: UInt8, request: EmbedRequest) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the patches that a request leaves out.

    Args:
        images: uint8 RGB (n, side, side, 3).
        request: states how white and how blurred a patch may be.

    Returns:
        bool (n,): which patches are too white; bool (n,): which others are too blurred.
    """
    white, blurred = np.zeros(len(images), bool), np.zeros(len(images), bool)
    if request.max_white is not None:
        white[:] = [white_share(image) > request.max_white for image in images]
    if request.min_sharpness is not None:
        blurred[:] = [sharpness(image) < request.min_sharpness for image in images]
    return white, blurred & ~white
