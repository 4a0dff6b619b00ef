"""Whether images look like the crops that they were given: staining, retrieval, copying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.evaluate.data import Material, SyntheticPairs, spread
from services.evaluate.retrieval import retrieval_top1
from services.evaluate.stain import stain_error, stain_statistics
from shared.arrays import Float32, Float64, Int64, UInt8
from shared.contracts.synthesize import CropOrigin, Provenance
from shared.datasets.samples import Sample
from shared.diffusion.crops import place
from shared.encoders import Encoder
from shared.imaging.augment import symmetry
from shared.imaging.copying import BLOCK, crop_copying
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.storage import ObjectStore

MOST_COPIES = 300  # images that are searched for copied crops
LEAST_PIXELS = 32  # of a region whose staining is compared


class Sources:
    """The real regions that maps and crops of a dataset were taken from.

    Args:
        store: holds the region sets.
        pairs: the dataset.
    """

    def __init__(self, store: ObjectStore, pairs: SyntheticPairs) -> None:
        first = pairs.samples.provenance(0)
        self._regions = {
            name: RegionIndex(store, load_region_set(store, name), "train", "val", "test")
            for name in {first.map_regions, first.crop_regions}
        }
        self._numbers = {
            name: {key: number for number, key in enumerate(regions.keys)}
            for name, regions in self._regions.items()
        }

    def _image(self, regions: str, key: str) -> UInt8:
        return self._regions[regions][self._numbers[regions][key]].image

    def crop(self, made: Provenance, origin: CropOrigin) -> UInt8:
        """Cut a crop again, uint8 RGB (side, side, 3)."""
        image = self._image(made.crop_regions, origin.region)
        return image[origin.y : origin.y + origin.side, origin.x : origin.x + origin.side]

    def real(self, sample: Sample) -> UInt8:
        """Cut the real image of a sample's map, uint8 RGB (size, size, 3), turned as that is."""
        made, size = sample.provenance, len(sample.labels)
        image = self._image(made.map_regions, made.map_region)
        return symmetry(
            image[made.map_y : made.map_y + size, made.map_x : made.map_x + size], made.symmetry
        )


def from_elsewhere(made: Provenance) -> tuple[CropOrigin, ...]:
    """Crops of other regions than the map's own, which the real image of the map may repeat."""
    return tuple(origin for origin in made.crops if origin.region != made.map_region)


def stain_errors(store: ObjectStore, rows: Mapping[str, SyntheticPairs]) -> dict[str, float]:
    """Compare the staining of each synthetic region with that of the crop of its class.

    Args:
        store: holds the regions.
        rows: datasets by name of the ablation row.

    Returns:
        For each row, and for 'real' (the regions that the maps of 'both' were taken from: how
        far other regions of the crop's slide lie apart), the mean error in units of optical
        density.
    """
    found: dict[str, list[float]] = {}
    for row, pairs in rows.items():
        sources = Sources(store, pairs)
        for number in range(len(pairs)):
            sample = pairs.samples[number]
            made = sample.provenance
            for origin in made.crops:
                inside = sample.labels == origin.label
                if inside.sum() < LEAST_PIXELS:
                    continue
                wanted = stain_statistics(sources.crop(made, origin), None)
                error = stain_error(stain_statistics(sample.image, inside), wanted)
                found.setdefault(row, []).append(error)
                if row == "both" and origin in from_elsewhere(made):
                    truth = stain_statistics(sources.real(sample), inside)
                    found.setdefault("real", []).append(stain_error(truth, wanted))
    return {row: float(np.mean(errors)) for row, errors in found.items()}


def copying(store: ObjectStore, material: Material) -> dict[str, Any]:
    """Measure how much of a crop reappears in its image, against chance.

    Returns:
        `made`: mean share of the crops' textured blocks found in the images made from
        them; `chance`: found in the real region of the same map, which is another one
        of the slide where there is one; and `n` crops.
    """
    pairs = material.rows.get("both", material.synthetic)
    sources = Sources(store, pairs)
    made, chance = [], []
    for number in spread(len(pairs), MOST_COPIES):
        sample = pairs.samples[number]
        for origin in sample.provenance.crops:
            if origin.side < BLOCK:
                continue
            crop = sources.crop(sample.provenance, origin)
            made.append(crop_copying(sample.image, crop))
            if origin in from_elsewhere(sample.provenance):
                chance.append(crop_copying(sources.real(sample), crop))
    return {
        "made": float(np.mean(made)) if made else None,
        "chance": float(np.mean(chance)) if chance else None,
        "n": len(made),
        "n_chance": len(chance),
    }


@dataclass(frozen=True)
class CropPairs:
    """Crops, and windows of the same side and class out of the images made from them.

    Attributes:
        windows, crops: lists of uint8 RGB (side, side, 3).
        labels: int64 (n,), class of each.
        slides: int64 (n,), number of each crop's slide.
    """

    windows: list[UInt8]
    crops: list[UInt8]
    labels: Int64
    slides: Int64


def crop_pairs(
    store: ObjectStore, pairs: SyntheticPairs, seed: int, real: bool = False
) -> CropPairs:
    """Cut, for every crop given, a window of the same class out of the image made.

    With `real`, out of the real region that the map was taken from, and of crops from others:
    what the crop's slide tells of its other regions.
    """
    sources = Sources(store, pairs)
    windows, crops, labels, slides = [], [], [], []
    for number in range(len(pairs)):
        sample = pairs.samples[number]
        made = sample.provenance
        image = sources.real(sample) if real else sample.image
        rng = np.random.default_rng([seed, number])
        for origin in from_elsewhere(made) if real else made.crops:
            spot = place(sample.labels, origin.label, origin.side, rng)
            if spot is None:
                continue
            x, y = spot
            windows.append(image[y : y + origin.side, x : x + origin.side])
            crops.append(sources.crop(made, origin))
            labels.append(origin.label)
            slides.append(origin.slide)
    numbers = np.unique(np.array(slides, np.str_), return_inverse=True)[1]
    return CropPairs(windows, crops, np.array(labels, np.int64), numbers.astype(np.int64))


def retrieval(found: CropPairs, encoder: Encoder | None, seed: int) -> dict[str, Any]:
    """Find each window's own crop among 31 others of its class, from other slides.

    Args:
        found: windows and crops.
        encoder: whose features are compared; None for stain statistics.
        seed: of the draw of the others.
    """
    if not found.crops:
        return {"top1": None, "n": 0, "skipped": 0, "chance": None}
    queries, keys = (
        np.stack([_stain_vector(image) for image in images])
        if encoder is None
        else _features(encoder, images)
        for images in (found.windows, found.crops)
    )
    rng = np.random.default_rng(seed)
    return retrieval_top1(queries, keys, found.labels, found.slides, rng=rng)


def _features(encoder: Encoder, images: list[UInt8]) -> Float32:
    """Encode images of several sides, (n, dim); those of one side in one go."""
    sides = np.array([len(image) for image in images])
    found: dict[int, Float32] = {}
    for side in np.unique(sides):
        rows = np.flatnonzero(sides == side).tolist()
        values = encoder.encode(np.stack([images[row] for row in rows]))
        found |= dict(zip(rows, values, strict=True))
    return np.stack([found[row] for row in range(len(images))])


def _stain_vector(image: UInt8) -> Float64:
    """Mean (3) and upper half of the covariance (6) of the optical density."""
    statistics = stain_statistics(image, None)
    upper = statistics.covariance[np.triu_indices(3)]
    return np.concatenate([statistics.mean, upper])
