"""Batches: regions drawn, turned, re-stained, and given their crops; all from (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.contracts.train import DenoiserRecipe
from shared.diffusion.crops import Crop, CropRule, cropped_labels, move_crop, take_crop
from shared.errors import InputError
from shared.imaging.augment import restain, stain_table, symmetry
from shared.imaging.regions import RegionIndex

UInt8 = NDArray[np.uint8]

ELSEWHERE = 0.5
"""Share of augmented crops that come from another region of the slide, where there is one."""


@dataclass(frozen=True)
class Batch:
    """Training images with their conditions.

    Attributes:
        images: uint8 RGB (batch, side, side, 3).
        labels: uint8 (batch, side, side).
        crops: the crops of each image.
        use_map, use_crops: of each image, False where that condition is dropped.
        keys: region of each image.
    """

    images: UInt8
    labels: UInt8
    crops: list[list[Crop]]
    use_map: list[bool]
    use_crops: list[bool]
    keys: list[str]


class Batches:
    """Draws batches; batch `step` of process `rank` is a function of the seed alone.

    Args:
        index: the training regions.
        side: of the images, cut out of the regions at random.
        recipe: how crops are made and conditions dropped; None for images alone.
        seed: of everything that is drawn.
    """

    def __init__(
        self, index: RegionIndex, side: int, recipe: DenoiserRecipe | None, seed: tuple[int, ...]
    ) -> None:
        if not len(index):
            raise InputError(
                f"region set {index.record.name!r} has no region in its train split: "
                "relax the region rule (low, high, min_tissue), or add slides"
            )
        self.index = index
        self.side = side
        self.recipe = recipe
        self.seed = seed
        self._of_slide: dict[str, list[int]] = {}
        for number, slide in enumerate(index.slides):
            self._of_slide.setdefault(slide, []).append(number)

    def draw(self, step: int, size: int, rank: int = 0) -> Batch:
        """Draw the batch of one step."""
        rng = np.random.default_rng([*self.seed, rank, step])
        images, labels, crops, keys = [], [], [], []
        use_map, use_crops = self._dropped(rng, size)
        for row, chosen in enumerate(rng.integers(len(self.index), size=size)):
            region = self.index[int(chosen)]
            x, y = rng.integers(region.image.shape[0] - self.side + 1, size=2)
            window = np.s_[y : y + self.side, x : x + self.side]
            which = int(rng.integers(8))
            # Without crops to tell it, the staining must be as it is, or the model learns
            # stainings that no slide has.
            table = stain_table(rng) if use_crops[row] else None
            image = _restained(symmetry(region.image[window], which), table)
            mask = symmetry(region.labels[window], which)
            crops.append(self._crops(image, mask, region.slide, table, rng))
            images.append(image)
            labels.append(mask)
            keys.append(region.key)
        return Batch(np.stack(images), np.stack(labels), crops, use_map, use_crops, keys)

    def _dropped(self, rng: np.random.Generator, size: int) -> tuple[list[bool], list[bool]]:
        recipe, draw = self.recipe, rng.random(size)
        if recipe is None:
            return [True] * size, [True] * size
        both = draw < recipe.drop_both
        no_map = both | (draw >= 1 - recipe.drop_map)
        no_crops = draw < recipe.drop_both + recipe.drop_crops
        return (~no_map).tolist(), (~no_crops).tolist()

    def _crops(
        self, image: UInt8, mask: UInt8, slide: str, table: UInt8 | None, rng: np.random.Generator
    ) -> list[Crop]:
        recipe = self.recipe
        if recipe is None:
            return []
        rule = CropRule.of(recipe, self.index.record.classes)
        crops = []
        for label in cropped_labels(mask, rule):
            source, labels = image, mask
            if recipe.crop_augment and rng.random() < ELSEWHERE:
                others = self._of_slide[slide]
                donor = self.index[others[rng.integers(len(others))]]
                if (donor.labels == label).any():
                    source, labels = _restained(donor.image, table), donor.labels
            crop = take_crop(source, labels, label, rule, rng, self.side)
            if crop is not None and recipe.crop_augment:
                turned = symmetry(crop.pixels, int(rng.integers(8)))
                crop = move_crop(replace(crop, pixels=turned), mask, rng)
            if crop is not None:
                crops.append(crop)
        return crops

    def stream(self, start: int, stop: int, size: int, rank: int) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for steps `start` to `stop`, reading one batch ahead."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.draw, start, size, rank) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None  # noqa: S101 - for the type checker
                batch = ahead.result()
                ahead = pool.submit(self.draw, step + 1, size, rank)
                yield step, batch


def _restained(image: UInt8, table: UInt8 | None) -> UInt8:
    return image if table is None else restain(image, table)
