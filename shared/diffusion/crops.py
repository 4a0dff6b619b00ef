"""Crops: small squares of raw tissue, one for each class of a label map.

The paper (HeteroTissue-Diffuse, section 3) conditions on raw pixels of the tissue of
each class: a square crop of 50-200 px in a 512 px image, at its place on an otherwise
empty canvas. Its side grows with the complexity of the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from shared.arrays import Int64, UInt8
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.imaging.density import mean_density

SIDES, PLACES = 8, 8
"""Number of sides, and of places for each of them, among which `take_typical_crop` chooses."""


@dataclass(frozen=True)
class Crop:
    """A square of raw tissue and its place in the image.

    Attributes:
        label: class index.
        x, y: its upper left corner in the image, pixels.
        pixels: uint8 RGB (side, side, 3).
    """

    label: int
    x: int
    y: int
    pixels: UInt8


@dataclass(frozen=True)
class CropRule:
    """The bounds of crops' sides, and the classes that have crops.

    Attributes:
        low, high: smallest and largest side, as shares of the image's side.
        complexity: α of `crop_side`.
        first: the first label that has crops: 0 if label 0 is tissue, else 1.
    """

    low: float = 50 / 512
    high: float = 200 / 512
    complexity: float = 1.0
    first: int = 1

    @classmethod
    def of(cls, recipe: DenoiserRecipe, classes: Classes) -> CropRule:
        """Return the rule that a recipe states; `classes` decide whether label 0 has crops."""
        return cls(recipe.crop_min, recipe.crop_max, recipe.crop_complexity, classes.first)

    @property
    def least_area(self) -> float:
        """The area of the smallest crop, as a share of the image's area."""
        return self.low**2


def complexity(image: UInt8, mask: NDArray[np.bool_]) -> float:
    """Return the entropy of the grey values under `mask`, in 64 bins.

    0 if the mask is empty or all pixels are in one bin, 1 if all bins are equally frequent.
    """
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[mask]
    if not grey.size:
        return 0.0
    shares = np.bincount(grey >> 2, minlength=64) / grey.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() / 6)


def crop_side(size: int, score: float, rule: CropRule, rng: np.random.Generator) -> int:
    """Draw a crop's side d = d_base (1 + α score) in pixels, for an image of side `size`.

    α is `rule.complexity`. d_base is uniform between the lower bound and the upper bound divided
    by (1 + α), so that a crop of score 1 can just reach the upper bound. d is kept within bounds.
    """
    base = rng.uniform(rule.low, rule.high / (1 + rule.complexity))
    side = base * (1 + rule.complexity * score)
    return round(size * float(np.clip(side, rule.low, rule.high)))


def place(labels: UInt8, label: int, side: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draw a place for a square of `side` pixels where it covers much of a class.

    Returns:
        (x, y) of its upper left corner, see `_places`; None if the class is absent.
    """
    own = labels == label
    if not own.any():
        return None
    places = _places(cv2.integral(own.astype(np.uint8)), side)
    x, y = places[rng.integers(len(places))].tolist()
    return x, y


def take_crop(
    image: UInt8,
    labels: UInt8,
    label: int,
    rule: CropRule,
    rng: np.random.Generator,
    size: int,
) -> Crop | None:
    """Cut a crop of the class `label` out of an image; None if the class is absent.

    Args:
        image, labels: the image and its label map.
        label: the class.
        rule: bounds of the crop's side, as shares of `size`.
        rng: draws the side and the place.
        size: side, in pixels, of the image to be made with this crop.
    """
    side = crop_side(size, complexity(image, labels == label), rule, rng)
    spot = place(labels, label, side, rng)
    return None if spot is None else _cut(image, label, spot, side)


def take_typical_crop(
    image: UInt8,
    labels: UInt8,
    label: int,
    rule: CropRule,
    rng: np.random.Generator,
    size: int,
) -> Crop | None:
    """Cut a crop that is stained as its class is; see `take_crop` for the arguments.

    Of several crops, it is the one whose mean optical density is nearest to that of the class in
    the image. A crop from anywhere may show the nuclei of a gland alone, and the staining of a new
    image is matched to that of its crops.
    """
    own = labels == label
    if not own.any():
        return None
    score, wanted = complexity(image, own), mean_density(image, own)
    sums = cv2.integral(own.astype(np.uint8))
    crops = []
    for _ in range(SIDES):
        side = crop_side(size, score, rule, rng)
        places = _places(sums, side)
        drawn = places[rng.integers(len(places), size=PLACES)]
        crops += [_cut(image, label, (x, y), side) for x, y in drawn.tolist()]
    return min(crops, key=lambda crop: np.linalg.norm(mean_density(crop.pixels) - wanted))


def _places(sums: MatLike, side: int) -> Int64:
    """Return (x, y) of the squares that cover at least 98 % of the most of a class, (n, 2).

    Args:
        sums: integral of the class's mask.
        side: side of the squares.
    """
    cover = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.argwhere(cover >= 0.98 * cover.max())[:, ::-1]


def _cut(image: UInt8, label: int, spot: tuple[int, int], side: int) -> Crop:
    x, y = spot
    return Crop(label, x, y, image[y : y + side, x : x + side])


def cropped_labels(labels: UInt8, rule: CropRule) -> list[int]:
    """List the classes of a label map that get a crop."""
    return [int(label) for label in np.unique(labels) if label >= rule.first]


def move_crop(crop: Crop, labels: UInt8, rng: np.random.Generator) -> Crop | None:
    """Return the same pixels at a random place of their class in `labels`; None if it is absent."""
    spot = place(labels, crop.label, crop.pixels.shape[0], rng)
    return None if spot is None else Crop(crop.label, *spot, crop.pixels)


def filled(crop: UInt8, side: int) -> UInt8:
    """Enlarge a crop to (side, side, 3) by mirroring, or cut it to that size."""
    missing = side - len(crop)
    if missing <= 0:
        return crop[:side, :side]
    return np.pad(crop, ((0, missing), (0, missing), (0, 0)), mode="symmetric")
