"""Staining: the stain density of each class in an image is matched to that of its crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.arrays import Float64, UInt8
from shared.diffusion.crops import Crop
from shared.imaging.density import optical_density

FADE = 5
"""Width in pixels of the transition at the border between classes."""

MAX_RATIO = 2.0
"""Largest factor by which the density of a class is scaled, up or down."""

SMOOTH = 4.0
"""Standard deviation of the smoothing in `transfer_staining`, pixels: about a nucleus."""

GLASS_DENSITY = 5e-4
"""Lower bound of densities, so that ratios stay finite on clean glass."""


def match_staining(
    images: Tensor, labels: UInt8, crops: Sequence[Sequence[Crop]], strength: float
) -> Tensor:
    """Scale the optical density of each class in an image towards that of the class's crops.

    Optical density is proportional to the amount of stain (Beer-Lambert), so scaling it changes
    the strength of the staining and leaves glass white.

    Args:
        images: uint8 (B, H, W, 3).
        labels: label maps, uint8 (B, H, W).
        crops: the crops of each image.
        strength: 0 leaves images unchanged, 1 gives classes the mean density of their crops.

    Returns:
        uint8 (B, H, W, 3), on the device of the images.
    """
    if not strength or not any(crops):
        return images
    kinds, wanted = crop_densities(crops)
    areas = _areas(labels, kinds, images.device)
    scales = density_scales(_means(images, areas), wanted.to(images.device), strength)
    return _scaled(images, areas, scales)


def transfer_staining(
    image: UInt8, old: UInt8, new: UInt8, labels: UInt8, kinds: Sequence[int]
) -> UInt8:
    """Scale the optical density of an image, place by place, as it changes from `old` to `new`.

    Both are smoothed first, so their staining counts and not the places of their nuclei.

    Args:
        image, old, new: uint8 RGB (h, w, 3).
        labels: label map of the image, uint8 (h, w).
        kinds: the classes that change. Others stay, up to `FADE` / 2 pixels from these.
    """
    areas = _areas(labels[None], torch.tensor([kinds]), torch.device("cpu"))
    scales = density_scales(_smooth_density(old), _smooth_density(new), 1.0)
    scales *= _soft(areas).sum(1)[0].unsqueeze(2)
    scaled: UInt8 = _darkened(torch.from_numpy(image), scales).numpy()
    return scaled


def _smooth_density(image: UInt8) -> Tensor:
    density = optical_density(image).astype(np.float32)
    return torch.from_numpy(cv2.GaussianBlur(density, (0, 0), SMOOTH))


def class_densities(images: Tensor, labels: UInt8, kinds: Tensor) -> Tensor:
    """Return the mean optical density of each class over all images, float32 (N, 3).

    Args:
        images: uint8 (B, H, W, 3).
        labels: label maps, uint8 (B, H, W).
        kinds: the classes, (N,).
    """
    areas = _areas(labels, kinds.expand(len(labels), -1), images.device)
    return _means(images.flatten(0, 1).unsqueeze(0), areas.transpose(0, 1).flatten(1, 2)[None])[0]


def density_scales(actual: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """Return the logarithms of the factors that bring densities towards the wanted ones."""
    ratio = wanted.clamp_min(GLASS_DENSITY) / actual.clamp_min(GLASS_DENSITY)
    return strength * ratio.log().clamp(-math.log(MAX_RATIO), math.log(MAX_RATIO))


def scale_densities(images: Tensor, labels: UInt8, kinds: Tensor, scales: Tensor) -> Tensor:
    """Scale the optical density of each class by a given factor.

    Args:
        images: uint8 (B, H, W, 3).
        labels: label maps, uint8 (B, H, W).
        kinds: the classes, (N,).
        scales: logarithm of the factor of each class and colour, (N, 3).

    Returns:
        uint8 (B, H, W, 3). A pixel depends on labels up to `FADE` / 2 pixels away.
    """
    areas = _areas(labels, kinds.expand(len(labels), -1), images.device)
    return _scaled(images, areas, scales.expand(len(labels), -1, -1))


def _areas(labels: UInt8, kinds: Tensor, device: torch.device) -> Tensor:
    """Return where each class is, float32 (B, N, H, W)."""
    maps = torch.from_numpy(labels).unsqueeze(1)
    return (maps == kinds[..., None, None]).to(device, torch.float32)


def _means(images: Tensor, areas: Tensor) -> Tensor:
    """Return the mean optical density of each area, (B, N, 3)."""
    total = torch.einsum("bnhw,bhwc->bnc", areas, -((images.float() + 1) / 256).log10())
    return total / areas.sum((2, 3)).clamp_min(1).unsqueeze(2)


def _scaled(images: Tensor, areas: Tensor, scales: Tensor) -> Tensor:
    return _darkened(images, torch.einsum("bnhw,bnc->bhwc", _soft(areas), scales))


def _soft(areas: Tensor) -> Tensor:
    return functional.avg_pool2d(areas, FADE, 1, FADE // 2, count_include_pad=False)


def _darkened(images: Tensor, scales: Tensor) -> Tensor:
    """Scale the density of each pixel and colour; `scales` are logarithms, (…, H, W, 3)."""
    levels = (images.float() + 1) / 256
    return (256 * levels ** scales.exp() - 1).round().clamp(0, 255).to(torch.uint8)


def crop_densities(crops: Sequence[Sequence[Crop]]) -> tuple[Tensor, Tensor]:
    """Return the classes of crops (B, N), -1 for no crop, and their mean densities (B, N, 3)."""
    means: list[dict[int, Float64]] = []
    for own in crops:
        pixels: dict[int, list[UInt8]] = {}
        for crop in own:
            pixels.setdefault(crop.label, []).append(crop.pixels.reshape(-1, 3))
        means.append(
            {label: optical_density(np.concatenate(own)).mean(0) for label, own in pixels.items()}
        )
    most = max(map(len, means), default=0)
    kinds = torch.full((len(crops), most), -1)
    densities = torch.zeros(len(crops), most, 3)
    for row, known in enumerate(means):
        for place, (label, density) in enumerate(known.items()):
            kinds[row, place] = label
            densities[row, place] = torch.from_numpy(density)
    return kinds, densities
