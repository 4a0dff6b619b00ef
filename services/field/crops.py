"""The crops of a field: one for each class of its label map, in each of its appearances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.contracts.field import FieldRequest, PlacedCrop
from shared.contracts.models import ModelRecord
from shared.datasets.field_crops import check_crops, needed, slides_for_crops
from shared.datasets.given_crops import read_crop
from shared.diffusion.crops import Crop
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
    wanted = needed(present, model)
    given = list(request.crops) or _from_slides(store, model, wanted, request.appearances, rng)
    check_crops(given, present, model)
    places = {place: number for number, place in enumerate(dict.fromkeys(c.at for c in given))}
    ordered = sorted(given, key=lambda crop: (places[crop.at], crop.label))
    return [(each, read_crop(store, each, model, rng)) for each in ordered]


def _from_slides(
    store: Store,
    model: ModelRecord,
    wanted: Sequence[int],
    count: int,
    rng: np.random.Generator,
) -> list[PlacedCrop]:
    """Choose slides that have all classes, and of each the regions that show most of a class."""
    bank, slides = slides_for_crops(store, model, wanted, count)
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
