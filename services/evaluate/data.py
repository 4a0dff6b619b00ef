"""What is compared: real regions, split honestly, and synthetic images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_table_key
from shared.contracts.synthesize import DatasetRecord
from shared.contracts.train import PACKAGED
from shared.datasets.samples import DatasetIndex, load_dataset, relabel
from shared.errors import InputError
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.models import read_model
from shared.storage import ObjectNotFoundError, ObjectStore

UInt8 = NDArray[np.uint8]

FALLBACK_SHARE = 0.25  # of a training slide's regions, where no slide is held out


class Pairs(Protocol):
    """Images with label maps: (uint8 RGB (s, s, 3), uint8 (s, s)) by number."""

    def __len__(self) -> int: ...

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        """Return an image and its label map."""

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Name the slides, and the regions: what it shows, or its map's and then its crops'."""


@dataclass(frozen=True)
class RealPairs:
    """Real regions as pairs, labels turned into the dataset's."""

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
    """Synthetic images as pairs."""

    samples: DatasetIndex

    def __len__(self) -> int:
        return len(self.samples)

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        sample = self.samples[number]
        return sample.image, sample.labels

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        made = self.samples.provenance(number)
        return (
            (made.map_slide, *(crop.slide for crop in made.crops)),
            (made.map_region, *(crop.region for crop in made.crops)),
        )


@dataclass(frozen=True)
class Material:
    """Everything a report compares.

    Attributes:
        rows: the ablation's datasets, whose maps and crops are of test slides.
        seen: the same of training slides.
        held_out: whether the test regions' slides were seen by no training.
        cautions: what a reader must know before believing a figure.
    """

    dataset: DatasetRecord
    model: ModelRecord
    real: RegionSet
    train: RealPairs
    test: RealPairs
    synthetic: SyntheticPairs
    rows: dict[str, SyntheticPairs]
    seen: dict[str, SyntheticPairs]
    train_slides: list[str]
    test_slides: list[str]
    held_out: bool
    cautions: list[str]


def gather(store: ObjectStore, request: EvaluateRequest) -> Material:
    """Open a dataset and the real regions to hold it against.

    Where no slide of `request.real_test` has regions, the last quarter of every
    training slide (by position) is tested on instead, and `held_out` is False.

    Raises:
        InputError: sizes, resolutions or classes differ, or there is no real region.
    """
    dataset = load_dataset(store, request.dataset)
    model = read_model(store, ModelRef.parse(dataset.model))
    real = load_region_set(store, request.regions or model.regions)
    table = relabel(real.classes, dataset.classes, f"region set {real.name!r}")
    if real.rule.size < dataset.size or abs(real.rule.mpp / dataset.mpp - 1) > 0.05:
        raise InputError(
            f"regions of {real.name!r} ({real.rule.size} px at {real.rule.mpp} µm) do not fit "
            f"dataset {dataset.dataset!r} ({dataset.size} px at {dataset.mpp} µm): take regions "
            "at the same resolution, at least as large"
        )
    cautions: list[str] = []
    train_slides = [part.slide for part in real.of_split(*request.real_train)]
    test_slides = [part.slide for part in real.of_split(*request.real_test)]
    if not train_slides:
        raise InputError(
            f"region set {real.name!r} has no region in {' or '.join(request.real_train)}: "
            "there is nothing real to train the segmenter on"
        )
    if test_slides:
        regions = RegionIndex(store, real, *request.real_train)
        train = RealPairs(regions, range(len(regions)), table)
        regions = RegionIndex(store, real, *request.real_test)
        test = RealPairs(regions, range(len(regions)), table)
        datasets = (request.dataset, *request.ablation.values(), *request.seen.values())
        models = dict.fromkeys(load_dataset(store, each).model for each in datasets)
        trained = _training_slides(store, list(models), cautions)
        overlap = sorted(set(test_slides) & (set(train_slides) | trained))
        if overlap:
            cautions.append(
                f"Slides {', '.join(overlap)} are tested on, and were also trained on: "
                "the figures are better than they would be on new slides."
            )
        if not _source_slides(store, dataset, model).isdisjoint(test_slides):
            cautions.append(
                f"Maps or crops of the dataset were taken from the {' or '.join(request.real_test)}"
                " split: what it is tested on is partly what it was made from."
            )
        held_out = not cautions
    else:
        train, test = _halve(store, real, request, table)
        test_slides, held_out = train_slides, False
        cautions.append(
            f"No slide is held out: region set {real.name!r} has no region in "
            f"{' or '.join(request.real_test)}. The last quarter of every training slide is "
            "tested on instead. The generator has seen these slides, and windows at the border "
            "overlap, so no figure here says how it does on new slides."
        )
    others = [
        {row: _row(store, name, dataset) for row, name in named.items()}
        for named in (request.ablation, request.seen)
    ]
    return Material(
        dataset=dataset,
        model=model,
        real=real,
        train=train,
        test=test,
        synthetic=SyntheticPairs(DatasetIndex(store, dataset)),
        rows=others[0],
        seen=others[1],
        train_slides=train_slides,
        test_slides=test_slides,
        held_out=held_out,
        cautions=cautions,
    )


def _row(store: ObjectStore, name: str, dataset: DatasetRecord) -> SyntheticPairs:
    """Open a dataset that stands beside the one that is measured."""
    record = load_dataset(store, name)
    if (record.size, record.classes) != (dataset.size, dataset.classes):
        raise InputError(
            f"dataset {name!r} has other classes or another size than {dataset.dataset!r}: rows of "
            "an ablation must differ in what the model was given, and in nothing else"
        )
    return SyntheticPairs(DatasetIndex(store, record))


def _training_slides(store: ObjectStore, models: list[str], cautions: list[str]) -> set[str]:
    """Slides that models (<name>/<version>), or what they were started from, were trained on."""
    slides: set[str] = set()
    for reference in models:  # grows by what each was started from
        try:
            model = read_model(store, ModelRef.parse(reference))
        except ObjectNotFoundError:
            cautions.append(
                f"Model {reference}, which a generator was started from, is no longer here: "
                "whether it was trained on slides that are tested on can't be told."
            )
            continue
        record = load_region_set(store, model.regions)
        slides |= {part.slide for part in record.of_split("train")}
        start = (model.warm_start or "").removeprefix("models/")
        if start not in ("", *PACKAGED, *models):
            models.append(start)
    return slides


def _source_slides(store: ObjectStore, dataset: DatasetRecord, model: ModelRecord) -> set[str]:
    """Slides that maps and crops of a dataset may be from."""
    return {
        part.slide
        for source in (dataset.request.maps, dataset.request.crops)
        for part in load_region_set(store, source.regions or model.regions).of_split(*source.splits)
    }


def _halve(
    store: ObjectStore, real: RegionSet, request: EvaluateRequest, table: UInt8
) -> tuple[RealPairs, RealPairs]:
    """Split the training slides' regions by position: the last quarter is tested on."""
    regions = RegionIndex(store, real, *request.real_train)
    number = {key: position for position, key in enumerate(regions.keys)}
    kept: list[int] = []
    tested: list[int] = []
    for part in real.of_split(*request.real_train):
        body = store.get(region_table_key(real.name, part.slide))
        rows = pq.read_table(io.BytesIO(body), columns=["key", "x", "y"]).to_pylist()
        rows.sort(key=lambda row: (row["x"], row["y"]))
        cut = len(rows) - round(FALLBACK_SHARE * len(rows))
        kept += [number[row["key"]] for row in rows[:cut]]
        tested += [number[row["key"]] for row in rows[cut:]]
    if not tested:
        raise InputError(
            f"region set {real.name!r} has too few regions to test on: ingest more slides, or "
            "relax the region rule"
        )
    return RealPairs(regions, kept, table), RealPairs(regions, tested, table)


def few_of(pairs: RealPairs, share: float) -> RealPairs:
    """Keep whole slides, in the order of a hash of their names, until `share` of pairs is in."""
    of_slide: dict[str, list[int]] = {}
    for position in pairs.positions:
        of_slide.setdefault(pairs.regions.slides[position], []).append(position)
    kept: list[int] = []
    for slide in sorted(of_slide, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(kept) < share * len(pairs):
            kept += of_slide[slide]
    return replace(pairs, positions=sorted(kept))


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly apart."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def centre(array: UInt8, size: int) -> UInt8:
    """Cut the central square of side `size` out of an image or label map."""
    top, left = ((side - size) // 2 for side in array.shape[:2])
    return array[top : top + size, left : left + size]
