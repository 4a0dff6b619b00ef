"""Measures how synthetic images resemble their crops: staining, retrieval, copying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from services.evaluate.data import (
    MAP_AND_CROPS,
    MAX_IMAGES,
    Material,
    Pairs,
    SyntheticPairs,
    centre,
    spread,
)
from services.evaluate.detail import fine_power
from services.evaluate.fidelity import FeatureSet
from services.evaluate.membership import by_denoiser
from services.evaluate.per_patient import per_patient
from services.evaluate.reconstruction import Transform, autoencoder_of, reconstruction_scores
from services.evaluate.retrieval import retrieval_top1
from services.evaluate.stain import stain_error, stain_statistics
from shared.arrays import Float32, Float64, Int64, UInt8
from shared.contracts.evaluate import (
    Appearance,
    Copying,
    EvaluateRequest,
    PerPatient,
    Retrieval,
)
from shared.contracts.synthesize import CropOrigin, Provenance
from shared.datasets.samples import Sample
from shared.diffusion.crops import place
from shared.encoders import Encoder
from shared.imaging.augment import symmetry
from shared.imaging.copying import BLOCK, crop_copying
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import Context
from shared.storage import Store

MAX_SEARCHED = 300
"""Greatest number of images that are searched for copied crops."""

MIN_STAIN_PIXELS = 32
"""Smallest area of a class in an image whose staining is compared, pixels."""


class Sources:
    """The real regions that the label maps and crops of a dataset were cut from.

    Args:
        store: holds the region sets.
        pairs: the dataset.
    """

    def __init__(self, store: Store, pairs: SyntheticPairs) -> None:
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

    def crop(self, provenance: Provenance, origin: CropOrigin) -> UInt8:
        """Cut a sample's crop out of its region again, uint8 RGB (side, side, 3)."""
        image = self._image(provenance.crop_regions, origin.region)
        return image[origin.y : origin.y + origin.side, origin.x : origin.x + origin.side]

    def real(self, sample: Sample) -> UInt8:
        """Cut the real image that belongs to a sample's label map, uint8 RGB (size, size, 3).

        It is turned and mirrored like the map.
        """
        provenance, size = sample.provenance, len(sample.labels)
        x, y = provenance.map_x, provenance.map_y
        image = self._image(provenance.map_regions, provenance.map_region)
        return symmetry(image[y : y + size, x : x + size], provenance.symmetry)


def from_elsewhere(provenance: Provenance) -> tuple[CropOrigin, ...]:
    """Return the crops that come from other regions than the map.

    A crop from the map's own region may be visible in the real image of the map, so the two
    cannot be compared. A sampled map has no real image, so there are none.
    """
    if provenance.sampled_map:
        return ()
    return tuple(origin for origin in provenance.crops if origin.region != provenance.map_region)


def measure_appearance(
    request: EvaluateRequest, material: Material, context: Context
) -> Appearance:
    """Measure staining, fine detail, copying, retrieval, reconstructions and membership."""
    store, reconstructed = context.store, autoencoder_of(material, context)
    return Appearance(
        stain=stain_errors(store, material.named_rows),
        copying=copying(store, material),
        retrieval=crop_retrieval(store, material, None, request.seed),
        autoencoder=reconstruction_scores(material, reconstructed),
        membership=by_denoiser(material, context, request.seed),
        per_patient=stain_per_patient(material, request.seed),
        detail=detail(material, reconstructed),
    )


def stain_errors(store: Store, rows: Mapping[str, SyntheticPairs]) -> dict[str, float]:
    """Compare the staining of each class in an image with the staining of its crop.

    Args:
        store: holds the real regions.
        rows: name of a row → dataset.

    Returns:
        Row → mean `stain_error`, in units of optical density. The row 'real' compares the real
        images of the maps with crops from other regions. If maps and crops come from the same
        slides, this is the error between regions of one slide.
    """
    errors: dict[str, list[float]] = {}
    for row, pairs in rows.items():
        sources = Sources(store, pairs)
        for number in range(len(pairs)):
            sample = pairs.samples[number]
            provenance = sample.provenance
            for origin in provenance.crops:
                inside = sample.labels == origin.label
                if inside.sum() < MIN_STAIN_PIXELS:
                    continue
                wanted = stain_statistics(sources.crop(provenance, origin), None)
                error = stain_error(stain_statistics(sample.image, inside), wanted)
                errors.setdefault(row, []).append(error)
                if row == MAP_AND_CROPS and origin in from_elsewhere(provenance):
                    truth = stain_statistics(sources.real(sample), inside)
                    errors.setdefault("real", []).append(stain_error(truth, wanted))
    return {row: float(np.mean(values)) for row, values in errors.items()}


def detail(material: Material, reconstructed: Transform) -> dict[str, float]:
    """Compare the fine detail of images with that of the real test images.

    Returns:
        Row, or 'reconstruction' → `fine_power`, as a share of that of the real test images.
    """

    def images(pairs: Pairs) -> Iterator[UInt8]:
        for number in spread(len(pairs), MAX_SEARCHED):
            yield centre(pairs.pair(number)[0], material.dataset.size)

    real = fine_power(images(material.test))
    again = (reconstructed(image[None])[0] for image in images(material.test))
    powers = {row: fine_power(images(pairs)) for row, pairs in material.named_rows.items()}
    powers["reconstruction"] = fine_power(again)
    return {row: power / max(real, 1e-12) for row, power in powers.items()}


def stain_per_patient(material: Material, seed: int) -> PerPatient | None:
    """Compare images with the other real images of their patient, by their staining.

    The features are `_stain_vector`, in units of their standard deviation over the real images.
    """

    def features(pairs: Pairs) -> FeatureSet:
        numbers = spread(len(pairs), MAX_IMAGES)
        size = material.dataset.size
        values = np.stack([_stain_vector(centre(pairs.pair(n)[0], size)) for n in numbers])
        slides, regions = zip(*map(pairs.origins, numbers), strict=True)
        return FeatureSet(values.astype(np.float32)[:, None], slides, regions)

    test = features(material.test)
    mean, spread_of = test.values.mean(0), np.maximum(test.values.std(0), 1e-6)

    def scaled(own: FeatureSet) -> FeatureSet:
        return replace(own, values=(own.values - mean) / spread_of)

    rows = {row: scaled(features(pairs)) for row, pairs in material.rows.items()}
    return per_patient(scaled(test), rows, material.patients, seed)


def copying(store: Store, material: Material) -> Copying:
    """Measure the share of crops that reappears in their images, and the share due to chance.

    Chance is the share that reappears in the real image of the same map, for crops that come
    from other regions than the map. If maps and crops come from the same slides, this is another
    region of the crop's slide.
    """
    pairs = material.map_and_crops
    sources = Sources(store, pairs)
    copied, chance = [], []
    for number in spread(len(pairs), MAX_SEARCHED):
        sample = pairs.samples[number]
        for origin in sample.provenance.crops:
            if origin.side < BLOCK:
                continue
            crop = sources.crop(sample.provenance, origin)
            copied.append(crop_copying(sample.image, crop))
            if origin in from_elsewhere(sample.provenance):
                chance.append(crop_copying(sources.real(sample), crop))
    return Copying(
        made=float(np.mean(copied)) if copied else None,
        chance=float(np.mean(chance)) if chance else None,
        n=len(copied),
        n_chance=len(chance),
    )


@dataclass(frozen=True)
class CropPairs:
    """Crops, each with a window of the same side and class from the image made from it.

    Attributes:
        windows, crops: uint8 RGB (side, side, 3) each; the side differs between pairs.
        labels: int64 (n,), class of each pair.
        slides: int64 (n,), number of each crop's slide.
    """

    windows: list[UInt8]
    crops: list[UInt8]
    labels: Int64
    slides: Int64


def crop_pairs(store: Store, pairs: SyntheticPairs, seed: int, real: bool = False) -> CropPairs:
    """Cut, for each crop of each image, a window of the crop's class out of the image.

    Args:
        store: holds the real regions.
        pairs: the images.
        seed: seed of the windows' places.
        real: cut the windows out of the real images of the maps instead, and leave out crops
            from the map's own region. This measures how well real regions find each other.
    """
    sources = Sources(store, pairs)
    windows, crops, labels, slides = [], [], [], []
    for number in range(len(pairs)):
        sample = pairs.samples[number]
        provenance = sample.provenance
        image = sources.real(sample) if real else sample.image
        rng = np.random.default_rng([seed, number])
        for origin in from_elsewhere(provenance) if real else provenance.crops:
            spot = place(sample.labels, origin.label, origin.side, rng)
            if spot is None:
                continue
            x, y = spot
            windows.append(image[y : y + origin.side, x : x + origin.side])
            crops.append(sources.crop(provenance, origin))
            labels.append(origin.label)
            slides.append(origin.slide)
    numbers = np.unique(np.array(slides, np.str_), return_inverse=True)[1]
    return CropPairs(windows, crops, np.array(labels, np.int64), numbers.astype(np.int64))


def crop_retrieval(
    store: Store, material: Material, encoder: Encoder | None, seed: int
) -> dict[str, Retrieval]:
    """Measure how often a window of an image finds, among other crops, the image's own crop.

    Images made without crops, and the real images of the label maps, serve for comparison.

    Args:
        store: holds the real regions.
        material: the compared images.
        encoder: makes the features that are compared; None: compare stain statistics.
        seed: seed of all draws.

    Returns:
        'map' (images made from maps alone), 'both' (from maps and crops) and 'real' (the real
        images of those maps) → retrieval. A name is missing if the request has no such dataset.
    """
    return {
        name: find_crops(
            crop_pairs(store, material.rows[row], seed, real=name == "real"), encoder, seed
        )
        for name, row in (("map", "map"), (MAP_AND_CROPS, MAP_AND_CROPS), ("real", MAP_AND_CROPS))
        if row in material.rows
    }


def find_crops(pairs: CropPairs, encoder: Encoder | None, seed: int) -> Retrieval:
    """Search each window's own crop among 31 crops of the same class from other slides.

    Args:
        pairs: windows and crops.
        encoder: makes the features that are compared; None: compare stain statistics.
        seed: seed of the draw of the other crops.
    """
    if not pairs.crops:
        return Retrieval(top1=None, n=0, skipped=0, chance=None)
    queries, keys = (
        np.stack([_stain_vector(image) for image in images])
        if encoder is None
        else _features(encoder, images)
        for images in (pairs.windows, pairs.crops)
    )
    rng = np.random.default_rng(seed)
    return retrieval_top1(queries, keys, pairs.labels, pairs.slides, rng=rng)


def _features(encoder: Encoder, images: list[UInt8]) -> Float32:
    """Encode images of different sides, one batch per side: (n, dim)."""
    sides = np.array([len(image) for image in images])
    features: dict[int, Float32] = {}
    for side in np.unique(sides):
        rows = np.flatnonzero(sides == side).tolist()
        values = encoder.encode(np.stack([images[row] for row in rows]))
        features |= dict(zip(rows, values, strict=True))
    return np.stack([features[row] for row in range(len(images))])


def _stain_vector(image: UInt8) -> Float64:
    """Return mean (3 values) and upper triangle of the covariance (6) of the optical density."""
    statistics = stain_statistics(image, None)
    upper = statistics.covariance[np.triu_indices(3)]
    return np.concatenate([statistics.mean, upper])
