"""Training batches: random regions, turned and re-stained, with crops of their classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.arrays import UInt8
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.crops import Crop, CropRule, cropped_labels, move_crop, take_crop
from shared.errors import InputError
from shared.imaging.augment import restain, stain_table, symmetry
from shared.imaging.region_sets import RegionIndex

Float16 = NDArray[np.float16]

TURNS = 8
"""Number of symmetries of a square, see `shared.imaging.augment.symmetry`."""


@dataclass(frozen=True)
class Batch:
    """Training images with their conditions.

    Attributes:
        images: uint8 RGB (batch, side, side, 3).
        labels: label maps, uint8 (batch, side, side).
        crops: the crops of each image.
        use_map, use_crops: per image, False if that condition is dropped.
        keys: key of each image's region.
        latents: latents of the images, float16 (batch, C, h, w), if they were computed in advance.
    """

    images: UInt8
    labels: UInt8
    crops: list[list[Crop]]
    use_map: list[bool]
    use_crops: list[bool]
    keys: list[str]
    latents: Float16 | None = None


@dataclass(frozen=True)
class View:
    """A window of a region, turned and re-stained.

    Attributes:
        x, y: upper left corner of the window in the region, pixels.
        turn: the symmetry, 0 to 7, see `shared.imaging.augment.symmetry`.
        table: the staining, see `stain_table`; None for the original one.
    """

    x: int
    y: int
    turn: int
    table: UInt8 | None

    def cut(self, array: UInt8, side: int) -> UInt8:
        """Cut the window of `side` pixels out of a region's image or label map, and turn it."""
        return symmetry(array[self.y : self.y + side, self.x : self.x + side], self.turn)

    def stain(self, image: UInt8) -> UInt8:
        """Give an image the staining of this view."""
        return image if self.table is None else restain(image, self.table)


class Batches:
    """Draws training batches; a row depends only on the seed, the step and its number.

    Args:
        index: the training regions.
        side: side of the images in pixels; each is a random window of its region.
        recipe: rules for crops and dropped conditions; None for images without conditions.
        seed: seed of all random choices.
        latents: latents of every view of every region, float16 (regions, views, C, h, w), if they
            were computed in advance.

    Attributes:
        views_per_region: number of fixed views of a region; 0 draws a new view in every step.

    Raises:
        InputError: there are no training regions.
    """

    def __init__(
        self,
        index: RegionIndex,
        side: int,
        recipe: DenoiserRecipe | None,
        seed: tuple[int, ...],
        latents: Float16 | None = None,
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
        self.latents = latents
        self.views_per_region = recipe.views if recipe is not None else 0
        self._of_slide: dict[str, list[int]] = {}
        for number, slide in enumerate(index.slides):
            self._of_slide.setdefault(slide, []).append(number)

    def draw(self, step: int, size: int, rank: int = 0) -> Batch:
        """Draw the `size` rows that the process `rank` trains on in a step.

        Each row has a seed of its own, so that two processes together draw the same rows as one
        process with twice the size.
        """
        rows = [self._row(step, rank * size + place) for place in range(size)]
        images, labels, crops, use_map, use_crops, keys, latents = map(
            list, zip(*rows, strict=True)
        )
        stacked = np.stack(latents) if self.latents is not None else None
        return Batch(np.stack(images), np.stack(labels), crops, use_map, use_crops, keys, stacked)

    def _row(self, step: int, row: int) -> tuple[Any, ...]:
        rng = np.random.default_rng([*self.seed, step, row])
        chosen = int(rng.integers(len(self.index)))
        use_map, use_crops = self._dropped(float(rng.random()))
        # Without crops, keep the original staining: otherwise the model would learn to invent
        # stainings that no slide has.
        number, view = self._draw_view(chosen, rng, stained=use_crops)
        region = self.index[chosen]
        image = view.stain(view.cut(region.image, self.side))
        mask = view.cut(region.labels, self.side)
        crops = self._crops(image, mask, region.slide, view, rng)
        latents = self.latents[chosen, number] if self.latents is not None else None
        return image, mask, crops, use_map, use_crops, region.key, latents

    def view_images(self, region: int) -> UInt8:
        """Return the images of all views of a region, uint8 (views_per_region, side, side, 3)."""
        image = self.index[region].image
        views = [self._view(region, number) for number in range(self.views_per_region)]
        return np.stack([view.stain(view.cut(image, self.side)) for view in views])

    def _draw_view(self, region: int, rng: np.random.Generator, stained: bool) -> tuple[int, View]:
        if not self.views_per_region:
            return 0, self._new_view(rng, int(rng.integers(TURNS)), stained)
        number = int(rng.integers(self.views_per_region if stained else TURNS))
        return number, self._view(region, number)

    def _view(self, region: int, number: int) -> View:
        """Return a fixed view: 0 to 7 have the original staining, later ones a random one."""
        # The 1 keeps these seeds apart from the seeds of steps.
        rng = np.random.default_rng([*self.seed, 1, region, number])
        return self._new_view(rng, number % TURNS, stained=number >= TURNS)

    def _new_view(self, rng: np.random.Generator, turn: int, stained: bool) -> View:
        x, y = rng.integers(self.index.record.rule.size - self.side + 1, size=2)
        return View(int(x), int(y), turn, stain_table(rng) if stained else None)

    def _dropped(self, draw: float) -> tuple[bool, bool]:
        """Return (use_map, use_crops) for a uniform random number `draw` in [0, 1)."""
        recipe = self.recipe
        if recipe is None:
            return True, True
        both = draw < recipe.drop_both
        crops = not both and draw < recipe.drop_both + recipe.drop_crops
        return not both and draw < 1 - recipe.drop_map, not both and not crops

    def _crops(
        self, image: UInt8, mask: UInt8, slide: str, view: View, rng: np.random.Generator
    ) -> list[Crop]:
        recipe = self.recipe
        if recipe is None:
            return []
        rule = CropRule.of(recipe, self.index.record.classes)
        crops = []
        for label in cropped_labels(mask, rule):
            source, labels = image, mask
            if recipe.crop_augment and rng.random() < recipe.crop_elsewhere:
                others = self._of_slide[slide]
                donor = self.index[others[rng.integers(len(others))]]
                if (donor.labels == label).any():
                    source, labels = view.stain(donor.image), donor.labels
            crop = take_crop(source, labels, label, rule, rng, self.side)
            if crop is not None and recipe.crop_augment:
                turned = symmetry(crop.pixels, int(rng.integers(8)))
                crop = move_crop(replace(crop, pixels=turned), mask, rng)
            if crop is not None:
                crops.append(crop)
        return crops

    def stream(
        self, start: int, stop: int, size: int, rank: int, ahead: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for `start` to `stop` - 1; `ahead` threads draw the next batches."""
        with ThreadPoolExecutor(ahead) as pool:
            drawn: deque[Future[Batch]] = deque()
            for step in range(start, stop + ahead):
                if step < stop:
                    drawn.append(pool.submit(self.draw, step, size, rank))
                if step >= start + ahead:
                    yield step - ahead, drawn.popleft().result()


class MapBatches(Batches):
    """Draws label maps alone: windows of regions, turned; the images have no pixels."""

    def _row(self, step: int, row: int) -> tuple[Any, ...]:
        rng = np.random.default_rng([*self.seed, step, row])
        chosen = int(rng.integers(len(self.index)))
        view = self._new_view(rng, int(rng.integers(TURNS)), stained=False)
        mask = view.cut(self.index.labels(chosen), self.side)
        image = np.empty((0, 0, 3), np.uint8)
        return image, mask, [], True, True, self.index.keys[chosen], None
