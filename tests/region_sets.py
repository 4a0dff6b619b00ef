"""Small region sets made of plain textures, for tests that need no slide."""

from __future__ import annotations

import cv2
import numpy as np

from shared.contracts.base import Classes, Split
from shared.contracts.regions import (
    RegionRule,
    RegionSet,
    RegionSetSlide,
    region_set_key,
)
from shared.imaging.region_sets import Region, pack_regions, put_regions, region_row
from shared.imaging.windows import Window, class_entropy
from shared.storage import Store, sha256

CLASSES = Classes.of("stroma", "tumor")
_COLORS = np.array([[245, 243, 246], [232, 160, 190], [120, 60, 140]], np.float32)


def texture_region(key: str, slide: str, size: int, rng: np.random.Generator) -> Region:
    """Draw a region of two tissues with a wavy border; each slide has its own stain."""
    field = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), size / 8)
    labels = np.where(field > 0, 2, 1).astype(np.uint8)
    labels[: size // 8] = 0
    stain = np.random.default_rng(len(slide) + sum(map(ord, slide))).normal(0, 12, 3)
    image = _COLORS[labels] + stain + rng.normal(0, 10, (size, size, 1))
    return Region(key, slide, image.clip(0, 255).astype(np.uint8), labels)


def make_region_set(
    store: Store,
    name: str = "toy",
    splits: dict[str, Split] | None = None,
    regions: int = 6,
    size: int = 64,
) -> RegionSet:
    """Write a region set with `regions` regions for each slide."""
    splits = splits or {"slide-a": "train", "slide-b": "train", "slide-c": "test"}
    parts = []
    for number, (slide, split) in enumerate(splits.items()):
        rng = np.random.default_rng(number)
        made = [texture_region(f"{slide}_{i}_0", slide, size, rng) for i in range(regions)]
        rows = []
        for i, region in enumerate(made):
            shares = np.bincount(region.labels.ravel(), minlength=3) / size**2
            window = Window(i, 0, tuple(shares.tolist()), float(class_entropy(shares)))
            rows.append(region_row(region, i, 0, window, RegionRule(size=size)))
        tar = pack_regions(made)
        put_regions(store, name, slide, rows, tar)
        parts.append(RegionSetSlide(slide=slide, split=split, regions=regions, sha256=sha256(tar)))
    record = RegionSet(
        name=name, cohort=name, labels="annotation", classes=CLASSES,
        rule=RegionRule(size=size), slides=tuple(parts),
    )  # fmt: skip
    store.put_json(region_set_key(name), record)
    return record
