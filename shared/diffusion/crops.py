"""Crops: small squares of raw tissue, one for each class of a label map.

The paper (HeteroTissue-Diffuse, section 3) conditions on raw pixels of every
class's tissue: a square crop of 50-200 px in a 512 px image, at its place in an
otherwise empty canvas. Its side grows with how complex the class's tissue is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """A square of raw tissue and where it stands in the image.

    Attributes:
        label: class index.
        x, y: its corner in the image, pixels.
        pixels: uint8 RGB (side, side, 3).
    """

    label: int
    x: int
    y: int
    pixels: UInt8


@dataclass(frozen=True)
class CropRule:
    """How large crops are (shares of the image's side, α of the complexity), and of what.

    Attributes:
        first: the first label that has a crop; 0 where that is tissue, and not glass.
    """

    low: float = 50 / 512
    high: float = 200 / 512
    complexity: float = 1.0
    first: int = 1

    @classmethod
    def of(cls, recipe: DenoiserRecipe, classes: Classes) -> CropRule:
        """The rule of a recipe for these classes."""
        return cls(recipe.crop_min, recipe.crop_max, recipe.crop_complexity, classes.first)


def complexity(image: UInt8, mask: NDArray[np.bool_]) -> float:
    """Entropy of the grey values under `mask`, 0 (flat) to 1 (all 64 levels alike)."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[mask]
    if not grey.size:
        return 0.0
    shares = np.bincount(grey >> 2, minlength=64) / grey.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() / 6)


def crop_side(size: int, score: float, rule: CropRule, rng: np.random.Generator) -> int:
    """Draw a crop's side for an image of side `size`: d = d_base (1 + α score), within bounds.

    d_base is drawn so that without complexity the side spans the lower part of the range.
    """
    base = rng.uniform(rule.low, rule.high / (1 + rule.complexity))
    side = base * (1 + rule.complexity * score)
    return round(size * float(np.clip(side, rule.low, rule.high)))


def place(labels: UInt8, label: int, side: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Find a place for a square of side `side` where the class covers most of it.

    Returns:
        (x, y) of its corner: a random one of the places with (nearly) the greatest
        coverage; None if the class is absent.
    """
    mask = (labels == label).astype(np.uint8)
    if not mask.any():
        return None
    sums = cv2.integral(mask)
    cover = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    rows, columns = np.nonzero(cover >= 0.98 * cover.max())
    chosen = rng.integers(len(rows))
    return int(columns[chosen]), int(rows[chosen])


def take_crop(
    image: UInt8,
    labels: UInt8,
    label: int,
    rule: CropRule,
    rng: np.random.Generator,
    size: int,
) -> Crop | None:
    """Cut a crop of one class, for an image of side `size`; None if the class is absent."""
    score = complexity(image, labels == label)
    side = crop_side(size, score, rule, rng)
    spot = place(labels, label, side, rng)
    if spot is None:
        return None
    x, y = spot
    return Crop(label, x, y, image[y : y + side, x : x + side])


def cropped_labels(labels: UInt8, rule: CropRule) -> list[int]:
    """List the classes of a label map that have a crop."""
    return [int(label) for label in np.unique(labels) if label >= rule.first]


def move_crop(crop: Crop, labels: UInt8, rng: np.random.Generator) -> Crop | None:
    """Place a crop from elsewhere into a label map, or None if its class is absent there."""
    spot = place(labels, crop.label, crop.pixels.shape[0], rng)
    return None if spot is None else Crop(crop.label, *spot, crop.pixels)
