"""Staining: a region is given as much of each stain as its crops hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.diffusion.crops import Crop

FADE = 5
"""Pixels over which the change fades at a region's border."""

MOST = 2.0
"""Times by which a region's density is scaled at most, up or down."""

FAINT = 1e-3
"""Density that clean glass is taken to have."""


def match_staining(
    images: Tensor, labels: NDArray[np.uint8], crops: Sequence[Sequence[Crop]], strength: float
) -> Tensor:
    """Scale the optical density of each region towards that of the crops of its class.

    By Beer and Lambert density is proportional to the amount of stain, so scaling it changes how
    strongly a region is stained and leaves glass white.

    Args:
        images: uint8 (B, H, W, 3).
        labels: uint8 (B, H, W).
        crops: of each image.
        strength: 0 leaves the images, 1 gives regions the mean density of their crops.

    Returns:
        uint8 (B, H, W, 3), on the device of the images.
    """
    if not strength or not any(crops):
        return images
    kinds, wanted = _densities(crops)
    places = torch.from_numpy(labels).unsqueeze(1)
    regions = (places == kinds[..., None, None]).to(images.device, torch.float32)
    levels = (images.float() + 1) / 256
    held = torch.einsum("bnhw,bhwc->bnc", regions, -levels.log())
    held = held / regions.sum((2, 3)).clamp_min(1).unsqueeze(2)
    ratio = wanted.to(images.device).clamp_min(FAINT) / held.clamp_min(FAINT)
    scale = strength * ratio.log().clamp(-math.log(MOST), math.log(MOST))
    soft = functional.avg_pool2d(regions, FADE, 1, FADE // 2, count_include_pad=False)
    scales = torch.einsum("bnhw,bnc->bhwc", soft, scale).exp()
    return (256 * levels**scales - 1).round().clamp(0, 255).to(torch.uint8)


def _densities(crops: Sequence[Sequence[Crop]]) -> tuple[Tensor, Tensor]:
    """Classes of each image's crops, (B, N) and -1 for none, and their mean densities (B, N, 3)."""
    means: list[dict[int, NDArray[np.float64]]] = []
    for own in crops:
        pixels: dict[int, list[NDArray[np.uint8]]] = {}
        for crop in own:
            pixels.setdefault(crop.label, []).append(crop.pixels.reshape(-1, 3))
        means.append(
            {k: -np.log((np.concatenate(v) + 1.0) / 256).mean(0) for k, v in pixels.items()}
        )
    most = max(map(len, means), default=0)
    kinds = torch.full((len(crops), most), -1)
    densities = torch.zeros(len(crops), most, 3)
    for row, known in enumerate(means):
        for place, (label, density) in enumerate(known.items()):
            kinds[row, place] = label
            densities[row, place] = torch.from_numpy(density)
    return kinds, densities
