"""The crops of a field: one for each class of its label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.contracts.field import FieldRequest
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.datasets.given_crops import read_crop
from shared.datasets.region_bank import RegionBank
from shared.diffusion.crops import Crop
from shared.errors import InputError
from shared.imaging.region_sets import load_region_set
from shared.seeds import image_seed
from shared.storage import Store


def choose_crops(
    store: Store, request: FieldRequest, model: ModelRecord, present: Sequence[int]
) -> list[tuple[GivenCrop, Crop]]:
    """Read the crops that a request gives, or choose some from a slide of the model's regions.

    Args:
        present: the classes of the label map.

    Returns:
        A crop of each class of the map that has crops, and where it is from.

    Raises:
        InputError: a class of the map has no crop, or several; or a crop is of another class.
    """
    rng = np.random.default_rng(image_seed(request.seed, 0))
    wanted = [label for label in present if label >= model.classes.first]
    given = list(request.crops) or _from_one_slide(store, model, wanted, rng)
    names = model.classes.names
    labels = [crop.label for crop in given]
    for label in labels:
        if label not in wanted:
            raise InputError(
                f"a crop is of class {_named(label, names)}, which the label map does not hold: "
                f"it holds {', '.join(names[own] for own in present)}"
            )
        if labels.count(label) > 1:
            raise InputError(f"class {names[label]!r} has several crops: give one")
    if missing := [names[label] for label in wanted if label not in labels]:
        raise InputError(f"the label map holds {', '.join(missing)}: give a crop of each")
    ordered = sorted(given, key=lambda crop: crop.label)
    return [(each, read_crop(store, each, model, rng)) for each in ordered]


def _from_one_slide(
    store: Store, model: ModelRecord, wanted: Sequence[int], rng: np.random.Generator
) -> list[GivenCrop]:
    """Choose the regions that show most of each class, of a slide that has all of them."""
    bank = RegionBank(store, load_region_set(store, model.regions), ("train",), model)
    slides = [
        slide
        for slide in np.unique(bank.slides).tolist()
        if (bank.shares[bank.slides == slide][:, wanted].max(0) > 0).all()
    ]
    if not slides:
        names = ", ".join(model.classes.names[label] for label in wanted)
        raise InputError(
            f"no slide of the regions {model.regions!r} has all of {names}: give a crop of each"
        )
    rows = np.flatnonzero(bank.slides == slides[rng.integers(len(slides))])
    best = {label: bank.keys[rows[bank.shares[rows, label].argmax()]] for label in wanted}
    return [GivenCrop(label=label, regions=bank.name, region=key) for label, key in best.items()]


def _named(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if label < len(names) else str(label)
