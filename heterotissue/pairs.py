"""Counterfactual pairs: images of the same noise, of which one has another map or other crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from heterotissue.series import Series, SeriesRecord, record_sha256
from services.field.crops import choose_crops
from shared.arrays import UInt8
from shared.contracts.base import Contract
from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.contracts.sampling import Sampling
from shared.datasets.field_inputs import read_labels
from shared.datasets.given_crops import read_crop
from shared.diffusion.crops import Crop, move_crop
from shared.diffusion.model_store import LoadedModel
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.marks import Mark, mark_png
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.sheet import colorize, sheet
from shared.seeds import image_seed
from shared.storage import Store, sha256

BATCH = 8


@dataclass(frozen=True)
class Side:
    """What one image of each pair is made from.

    Attributes:
        labels: the label map, uint8 (size, size).
        crops: at most one crop of each class.
    """

    labels: UInt8
    crops: Sequence[Crop]


def read_sides(
    store: Store,
    model: ModelRecord,
    labels: Path,
    other_labels: Path | None,
    given: tuple[GivenCrop, ...],
    others: tuple[GivenCrop, ...],
    seed: int,
) -> tuple[Side, Side]:
    """Read the maps and the crops of both sides.

    Args:
        store: holds the crops.
        model: the model.
        labels, other_labels: masks; None: the second side has the map of the first.
        given: a crop of each class, or none: crops from a slide of the model's regions.
        others: crops that the second side has instead.
        seed: chooses the slide.

    Raises:
        InputError: a map does not fit the model, a crop's class is in no map, or a class lacks one.
    """
    maps = [_read_map(path, model) for path in (labels, other_labels or labels)]
    placed = tuple(PlacedCrop(**crop.model_dump()) for crop in given)
    request = FieldRequest(
        field="pairs", model=model.model, version=model.version, labels="", crops=placed, seed=seed
    )
    first, second = (np.unique(each).tolist() for each in maps)
    crops = [crop for _, crop in choose_crops(store, request, model, sorted({*first, *second}))]
    read = [read_crop(store, crop, model, np.random.default_rng(seed)) for crop in others]
    replaced = {crop.label: crop for crop in read}
    if len(replaced) < len(read):
        raise InputError("a class has several other crops: give one")
    if absent := [model.classes.names[label] for label in replaced if label not in second]:
        raise InputError(f"the second map does not hold {', '.join(absent)}: give no crop of it")
    return (
        Side(maps[0], crops),
        Side(maps[1], [replaced.get(crop.label, crop) for crop in crops]),
    )


def _read_map(path: Path, model: ModelRecord) -> UInt8:
    mask = open_mask(path)
    if (mask.height, mask.width) != (model.size, model.size):
        raise InputError(
            f"{path.name} is {mask.width}×{mask.height} px: give one of {model.size}×{model.size} "
            f"px, the size of {model.ref}"
        )
    return read_labels(mask, model)


class Difference(Contract):
    """What differs between the images of each pair."""

    crops: tuple[str, ...] = Field(description="classes with another crop")
    map: dict[str, float] = Field(
        description="change, such as 'stroma → tumor' → share of the map that it is of"
    )


class PairsRecord(SeriesRecord):
    """What a series of pairs is made from: pairs.json."""

    derived: ClassVar[frozenset[str]] = frozenset({"difference", "seeds"})

    difference: Difference
    seeds: tuple[int, ...] = Field(description="seed of each pair")


def name_difference(first: Side, second: Side, model: ModelRecord) -> Difference:
    """Name what differs.

    Raises:
        InputError: nothing differs.
    """
    names = model.classes.names
    known = {crop.label: crop.pixels for crop in first.crops}
    other = {crop.label: crop.pixels for crop in second.crops}
    crops = tuple(
        names[label] for label in sorted(known) if not np.array_equal(known[label], other[label])
    )
    pairs, counts = np.unique(
        np.stack([first.labels, second.labels])[:, first.labels != second.labels],
        axis=1, return_counts=True,
    )  # fmt: skip
    changed = {
        f"{names[before]} → {names[after]}": round(count / first.labels.size, 4)
        for (before, after), count in zip(pairs.T.tolist(), counts.tolist(), strict=True)
    }
    if not crops and not changed:
        raise InputError("both sides of the pairs are the same: give another map or another crop")
    return Difference(crops=crops, map=changed)


def pair_files(number: int) -> list[str]:
    """Return the names of the image of a pair, and of its first and second image."""
    return [f"{number:04d}{end}.png" for end in ("", "-first", "-second")]


def make_pairs(
    model: LoadedModel,
    sides: tuple[Side, Side],
    sampling: Sampling,
    n: int,
    seed: int,
    out: Path,
) -> None:
    """Write pairs into a folder; those that are there already stay.

    <number>-first.png and <number>-second.png are the images, <number>.png shows both, and
    pairs.json names the difference. They are made in batches, and a batch is made as a whole.

    Args:
        model: makes the images.
        sides: what the first and the second image of a pair are made from.
        sampling: settings of sampling.
        n: number of pairs.
        seed: of the noise of all pairs.
        out: the folder.

    Raises:
        InputError: nothing differs, or the folder holds something else.
    """
    record = model.record
    difference = name_difference(*sides, record)
    said = [f"another crop of {name}" for name in difference.crops]
    said += [f"{100 * share:.1f} % {change}" for change, share in difference.map.items()]
    captions = ["first", "second: " + ", ".join(said)]
    mark = Mark(str(record.ref))
    seeds = [image_seed(seed, number) for number in range(n)]
    facts = PairsRecord(
        model=str(record.ref),
        n=n,
        seed=seed,
        inputs={"weights": record_sha256(record), **_inputs(sides, record)},
        difference=difference,
        seeds=tuple(seeds),
    )
    series = Series(out / "pairs.json", facts, pair_files)
    for which, side in zip(("first", "second"), sides, strict=True):
        series.write(f"{which}.mask.png", encode_png(side.labels))
    for start in range(0, n, BATCH):
        own = seeds[start : start + BATCH]
        numbers = range(start, start + len(own))
        if not any(map(series.lacks, numbers)):
            continue
        made = [
            model.generate(
                np.stack([side.labels] * len(own)),
                [_placed(side, each) for each in own],
                own,
                sampling,
            )
            for side in sides
        ]
        for number, first, second in zip(numbers, *made, strict=True):
            maps = [colorize(side.labels, record.classes.colors) for side in sides]
            both = sheet([list(row) for row in zip(maps, (first, second), strict=True)], captions)
            for name, image in zip(pair_files(number), (both, first, second), strict=True):
                series.write(name, mark_png(encode_png(image), mark))


def _inputs(sides: tuple[Side, Side], model: ModelRecord) -> dict[str, str]:
    """Return the SHA-256 of the pixels of the maps and crops of both sides, by their names."""
    found = {}
    for which, side in zip(("first", "second"), sides, strict=True):
        found[f"map of the {which} images"] = sha256(side.labels.tobytes())
        for crop in side.crops:
            name = model.classes.names[crop.label]
            found[f"crop of {name} of the {which} images"] = sha256(crop.pixels.tobytes())
    return found


def _placed(side: Side, seed: int) -> list[Crop]:
    """Place each crop on its class; equal maps give equal places."""
    placed = (
        move_crop(crop, side.labels, np.random.default_rng(image_seed(seed, crop.label)))
        for crop in side.crops
    )
    return [crop for crop in placed if crop is not None]
