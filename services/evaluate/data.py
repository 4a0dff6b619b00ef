"""The images that are compared: real regions, divided by slide, and synthetic images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from services.evaluate.held_out import find_leaks
from shared.arrays import UInt8
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_table_key
from shared.contracts.synthesize import Condition, DatasetRecord
from shared.datasets.pseudonyms import source_names
from shared.datasets.samples import DatasetIndex, load_dataset, relabel
from shared.errors import InputError
from shared.imaging.region_sets import RegionIndex, classes_without_regions, load_region_set
from shared.models import read_model
from shared.storage import Store
from shared.storage.formats import read_table

FALLBACK_SHARE = 0.25
"""Share of a training slide's regions that becomes test data if no slide is held out."""

MAX_IMAGES = 10_000
"""Greatest number of images of one source that features are made of."""

MAP_AND_CROPS: Condition = "both"
"""Name of the row of images that were made from map and crops."""


class Pairs(Protocol):
    """A numbered collection of images with label maps."""

    def __len__(self) -> int: ...

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        """Return an image, uint8 RGB (s, s, 3), and its label map, uint8 (s, s)."""

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the slides, and the regions, that an image comes from.

        A real image has one of each. A synthetic image has those of its map first, then those
        of its crops.
        """


@dataclass(frozen=True)
class RealPairs:
    """Some regions of a region set, with labels of the dataset.

    Attributes:
        regions: all regions.
        positions: positions of the chosen regions in `regions`.
        table: uint8 (256,), label of the region set → label of the dataset.
    """

    regions: RegionIndex
    positions: Sequence[int]
    table: UInt8

    def __len__(self) -> int:
        return len(self.positions)

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        region = self.regions[self.positions[number]]
        return region.image, self.table[region.labels]

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        position = self.positions[number]
        return (self.regions.slides[position],), (self.regions.keys[position],)


@dataclass(frozen=True)
class SyntheticPairs:
    """The images of a synthetic dataset."""

    samples: DatasetIndex

    def __len__(self) -> int:
        return len(self.samples)

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        sample = self.samples[number]
        return sample.image, sample.labels

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        provenance = self.samples.provenance(number)
        return (
            (provenance.map_slide, *(crop.slide for crop in provenance.crops)),
            (provenance.map_region, *(crop.region for crop in provenance.crops)),
        )


@dataclass(frozen=True)
class Division:
    """Real regions, divided into training and test regions.

    Attributes:
        train, test: the training and the test regions.
        train_slides, test_slides: names of their slides.
        held_out: whether the figures are those of new slides: no training has seen a test slide,
            and the dataset was not made from one. False if this is not known.
        cautions: sentences that tell a reader why figures may be too good.
    """

    train: RealPairs
    test: RealPairs
    train_slides: list[str]
    test_slides: list[str]
    held_out: bool
    cautions: list[str]


@dataclass(frozen=True)
class Material(Division):
    """All images that a report compares.

    Attributes:
        dataset: record of the evaluated dataset.
        model: record of the model that made it.
        real: record of the real region set.
        synthetic: images of the evaluated dataset.
        rows: name of an ablation's row → images made with maps and crops of test slides.
        seen: name of a row → images made with maps and crops of training slides.
    """

    dataset: DatasetRecord
    model: ModelRecord
    real: RegionSet
    synthetic: SyntheticPairs
    rows: dict[str, SyntheticPairs]
    seen: dict[str, SyntheticPairs]

    @property
    def map_and_crops(self) -> SyntheticPairs:
        """Images made from map and crops: a row of the ablation, or else the dataset itself."""
        return self.rows.get(MAP_AND_CROPS, self.synthetic)

    @property
    def patients(self) -> dict[str, str]:
        """Slide → patient; a slide of no known patient stands for itself."""
        return {part.slide: part.patient or part.slide for part in self.real.slides}

    @property
    def named_rows(self) -> dict[str, SyntheticPairs]:
        """Name of a row in the report → images, for all datasets of the ablation."""
        return self.rows | {f"seen {row}": pairs for row, pairs in self.seen.items()}


def gather(store: Store, request: EvaluateRequest) -> Material:
    """Open a dataset and the real regions that it is compared with.

    If no slide of the splits `request.real_test` has regions, the last quarter of each training
    slide (by x, then y) becomes test data instead, and `held_out` is False.

    Raises:
        InputError: sizes, resolutions or classes do not fit each other, or there are no real
            regions to train or to test on.
    """
    dataset = load_dataset(store, request.dataset)
    model = read_model(store, ModelRef.parse(dataset.model))
    real = load_region_set(store, request.regions or model.regions)
    table = relabel(real.classes, dataset.classes, f"region set {real.name!r}")
    _check_scale(real, dataset)
    if not real.of_split(*request.real_train):
        raise InputError(
            f"region set {real.name!r} has no region in {' or '.join(request.real_train)}: "
            "so there are no real images to train the segmenter on"
        )
    if real.of_split(*request.real_test):
        division = _divide_by_slide(store, request, real, table, dataset, model)
    else:
        division = _divide_within_slides(store, request, real, table)
    rows, seen = (
        {row: _open_row(store, name, dataset) for row, name in named.items()}
        for named in (request.ablation, request.seen)
    )
    return Material(
        **vars(division),
        dataset=dataset,
        model=model,
        real=real,
        synthetic=SyntheticPairs(
            DatasetIndex(store, dataset, partial(source_names, store, dataset))
        ),
        rows=rows,
        seen=seen,
    )


def _check_scale(real: RegionSet, dataset: DatasetRecord) -> None:
    if real.rule.size < dataset.size or abs(real.rule.mpp / dataset.mpp - 1) > 0.05:
        raise InputError(
            f"regions of {real.name!r} ({real.rule.size} px at {real.rule.mpp} µm) do not fit "
            f"dataset {dataset.dataset!r} ({dataset.size} px at {dataset.mpp} µm): take regions "
            "at the same resolution, at least as large"
        )


def _divide_by_slide(
    store: Store,
    request: EvaluateRequest,
    real: RegionSet,
    table: UInt8,
    dataset: DatasetRecord,
    model: ModelRecord,
) -> Division:
    """Divide real regions by the request's splits, and check which slides a training has seen."""
    train_slides, test_slides = (
        [part.slide for part in real.of_split(*splits)]
        for splits in (request.real_train, request.real_test)
    )
    cautions = find_leaks(store, request, real, dataset)
    train, test = (
        RealPairs(regions, range(len(regions)), table)
        for regions in (
            RegionIndex(store, real, *request.real_train),
            RegionIndex(store, real, *request.real_test),
        )
    )
    return Division(train, test, train_slides, test_slides, not cautions, cautions)


def _divide_within_slides(
    store: Store, request: EvaluateRequest, real: RegionSet, table: UInt8
) -> Division:
    """Test on the last quarter of each training slide's regions, ordered by x, then y."""
    regions = RegionIndex(store, real, *request.real_train)
    number = {key: position for position, key in enumerate(regions.keys)}
    train: list[int] = []
    test: list[int] = []
    slides = []
    for part in real.of_split(*request.real_train):
        slides.append(part.slide)
        key = region_table_key(real.name, part.slide)
        rows = read_table(store, key, ["key", "x", "y"]).to_pylist()
        rows.sort(key=lambda row: (row["x"], row["y"]))
        cut = len(rows) - round(FALLBACK_SHARE * len(rows))
        train += [number[row["key"]] for row in rows[:cut]]
        test += [number[row["key"]] for row in rows[cut:]]
    if not test:
        raise InputError(
            f"region set {real.name!r} has too few regions to test on: ingest more slides, or "
            "relax the region rule"
        )
    caution = (
        f"No slide is held out: region set {real.name!r} has no region in "
        f"{' or '.join(request.real_test)}. The last quarter of every training slide is "
        "tested on instead. The generator has seen these slides, and windows at the border "
        "overlap, so no figure here says how good it is on new slides."
    )
    return Division(
        RealPairs(regions, train, table),
        RealPairs(regions, test, table),
        train_slides=slides,
        test_slides=slides,
        held_out=False,
        cautions=[caution, *real.cautions],
    )


def _open_row(store: Store, name: str, dataset: DatasetRecord) -> SyntheticPairs:
    """Open a dataset of the ablation."""
    record = load_dataset(store, name)
    if (record.size, record.classes) != (dataset.size, dataset.classes):
        raise InputError(
            f"dataset {name!r} has other classes or another size than {dataset.dataset!r}: rows of "
            "an ablation may differ only in the conditions that the model was given"
        )
    return SyntheticPairs(DatasetIndex(store, record, partial(source_names, store, record)))


def class_gaps(store: Store, request: EvaluateRequest, real: RegionSet) -> list[str]:
    """Return a sentence for each kind of split in which some classes have no region."""
    gaps = []
    for splits, effect in (
        (request.real_train, "segmenters that are trained on real images cannot find them"),
        (request.real_test, "they are not scored"),
    ):
        missing = classes_without_regions(store, real, *splits) if real.of_split(*splits) else []
        if missing:
            gaps.append(f"No region of {' or '.join(splits)} has {', '.join(missing)}: {effect}.")
    return gaps


def fewer_slides(pairs: RealPairs, share: float) -> RealPairs:
    """Choose whole slides until they hold at least `share` (0 to 1) of the regions.

    The slides are taken in the order of a hash of their names, which is arbitrary but stable.
    """
    of_slide: dict[str, list[int]] = {}
    for position in pairs.positions:
        of_slide.setdefault(pairs.regions.slides[position], []).append(position)
    kept: list[int] = []
    for slide in sorted(of_slide, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(kept) < share * len(pairs):
            kept += of_slide[slide]
    return replace(pairs, positions=sorted(kept))


def spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced numbers from 0 to `count` - 1."""
    return [index * count // min(count, limit) for index in range(min(count, limit))]


def centre(array: UInt8, size: int) -> UInt8:
    """Cut the central square of side `size` out of an image or label map."""
    top, left = ((side - size) // 2 for side in array.shape[:2])
    return array[top : top + size, left : left + size]
