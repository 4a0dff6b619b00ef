"""The crops of a field: one for each class of its label map, in each of its appearances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.models import ModelRecord
from shared.datasets.given_crops import read_crop
from shared.datasets.region_bank import RegionBank
from shared.diffusion.crops import Crop
from shared.errors import InputError
from shared.imaging.region_sets import load_region_set
from shared.seeds import image_seed
from shared.storage import Store

SPREAD = (0.7549, 0.5698)
"""Steps that spread points evenly over a square, of any number (Roberts 2018, R2 sequence)."""


def choose_crops(
    store: Store, request: FieldRequest, model: ModelRecord, present: Sequence[int]
) -> list[tuple[PlacedCrop, Crop]]:
    """Read the crops that a request gives, or choose some from slides of the model's regions.

    Args:
        store: holds the crops.
        request: the request.
        model: its model.
        present: the classes of the label map.

    Returns:
        At each place a crop of each class of the map that has crops, and where it is from.

    Raises:
        InputError: a class of the map has no crop, or several at a place; a crop is of another
            class; or there are too few slides.
    """
    rng = np.random.default_rng(image_seed(request.seed, 0))
    wanted = [label for label in present if label >= model.classes.first]
    given = list(request.crops) or _from_slides(store, model, wanted, request.appearances, rng)
    for place in dict.fromkeys(crop.at for crop in given):
        _check([crop.label for crop in given if crop.at == place], wanted, present, model)
    places = {place: number for number, place in enumerate(dict.fromkeys(c.at for c in given))}
    ordered = sorted(given, key=lambda crop: (places[crop.at], crop.label))
    return [(each, read_crop(store, each, model, rng)) for each in ordered]


def _check(
    labels: Sequence[int], wanted: Sequence[int], present: Sequence[int], model: ModelRecord
) -> None:
    """Raise `InputError` unless there is one crop of each class that needs one, at a place."""
    names = model.classes.names
    for label in labels:
        if label not in wanted:
            raise InputError(
                f"a crop is of class {_named(label, names)}, which the label map does not hold: "
                f"it holds {', '.join(names[own] for own in present)}"
            )
        if labels.count(label) > 1:
            raise InputError(
                f"class {names[label]!r} has several crops: give one, or give each another place"
            )
    if missing := [names[label] for label in wanted if label not in labels]:
        raise InputError(f"the label map holds {', '.join(missing)}: give a crop of each")


def _from_slides(
    store: Store,
    model: ModelRecord,
    wanted: Sequence[int],
    count: int,
    rng: np.random.Generator,
) -> list[PlacedCrop]:
    """Choose slides that have all classes, and of each the regions that show most of a class."""
    bank = RegionBank(store, load_region_set(store, model.regions), ("train",), model)
    slides = [
        slide
        for slide in np.unique(bank.slides).tolist()
        if (bank.shares[bank.slides == slide][:, wanted].max(0) > 0).all()
    ]
    if len(slides) < count:
        names = ", ".join(model.classes.names[label] for label in wanted)
        which = f"only {len(slides)} of the slides" if slides else "no slide"
        raise InputError(
            f"{which} of the regions {model.regions!r} has all of {names}: give a crop of each"
            + (f", or ask for at most {len(slides)} appearances" if slides else "")
        )
    chosen = []
    for number, slide in enumerate(rng.choice(slides, count, replace=False).tolist()):
        rows = np.flatnonzero(bank.slides == slide)
        x, y = (round((0.5 + number * step) % 1, 4) for step in SPREAD)
        chosen += [
            PlacedCrop(
                label=label,
                regions=bank.name,
                region=bank.keys[rows[bank.shares[rows, label].argmax()]],
                at=(x, y) if count > 1 else None,
            )
            for label in wanted
        ]
    return chosen


def _named(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if label < len(names) else str(label)
