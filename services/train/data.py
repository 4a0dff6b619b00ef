"""Batches: regions drawn, turned, stain-jittered, and given their crops; all from (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.diffusion.crops import Crop, CropRule, take_crops
from shared.errors import InputError
from shared.imaging.augment import jitter_stain, symmetry
from shared.imaging.regions import RegionIndex

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Training images with their conditions.

    Attributes:
        images: uint8 RGB (batch, side, side, 3).
        labels: uint8 (batch, side, side).
        crops: the crops of each image, cut from that image.
        keys: region of each image.
    """

    images: UInt8
    labels: UInt8
    crops: list[list[Crop]]
    keys: list[str]


class Batches:
    """Draws batches; batch `step` of process `rank` is a function of the seed alone."""

    def __init__(
        self, index: RegionIndex, side: int, crop_rule: CropRule | None, seed: tuple[int, ...]
    ) -> None:
        if not len(index):
            raise InputError(
                f"region set {index.record.name!r} has no region in its train split: "
                "relax the region rule (low, high, min_tissue), or add slides"
            )
        self.index = index
        self.side = side
        self.crop_rule = crop_rule
        self.seed = seed

    def draw(self, step: int, size: int, rank: int = 0) -> Batch:
        """Draw the batch of one step."""
        rng = np.random.default_rng([*self.seed, rank, step])
        images, labels, crops, keys = [], [], [], []
        for chosen in rng.integers(len(self.index), size=size):
            region = self.index[int(chosen)]
            x, y = rng.integers(region.image.shape[0] - self.side + 1, size=2)
            window = np.s_[y : y + self.side, x : x + self.side]
            which = int(rng.integers(8))
            image = jitter_stain(symmetry(region.image[window], which), rng)
            mask = symmetry(region.labels[window], which)
            rule = self.crop_rule
            crops.append(take_crops(image, mask, rule, rng) if rule else [])
            images.append(image)
            labels.append(mask)
            keys.append(region.key)
        return Batch(np.stack(images), np.stack(labels), crops, keys)

    def stream(self, start: int, stop: int, size: int, rank: int) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for steps `start` to `stop`, reading one batch ahead."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.draw, start, size, rank) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None  # noqa: S101 - for the type checker
                batch = ahead.result()
                ahead = pool.submit(self.draw, step + 1, size, rank)
                yield step, batch
