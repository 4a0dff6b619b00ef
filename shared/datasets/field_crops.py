"""The crops of a field: what a label map needs, and the slides that can give it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.contracts.field import PlacedCrop
from shared.contracts.models import ModelRecord
from shared.datasets.region_bank import RegionBank
from shared.errors import InputError, all_quoted
from shared.imaging.region_sets import load_region_set
from shared.storage import Store


def needed(present: Sequence[int], model: ModelRecord) -> list[int]:
    """Return the classes of a label map that need a crop: those of tissue."""
    return [label for label in present if label >= model.classes.first]


def check_sources(
    store: Store,
    model: ModelRecord,
    present: Sequence[int],
    crops: Sequence[PlacedCrop],
    count: int,
) -> None:
    """Check where the crops of a field come from, before any work.

    Args:
        store: holds the model's regions.
        model: the model.
        present: the classes of the label map.
        crops: the given crops; none: slides of the model's regions give them.
        count: number of these slides.

    Raises:
        InputError: see `check_crops` and `slides_for_crops`.
    """
    if crops:
        check_crops(crops, present, model)
    else:
        slides_for_crops(store, model, needed(present, model), count)


def check_crops(crops: Sequence[PlacedCrop], present: Sequence[int], model: ModelRecord) -> None:
    """Raise `InputError` unless each place has one crop of each class that needs one.

    Args:
        crops: the crops.
        present: the classes of the label map.
        model: the model.
    """
    for place in dict.fromkeys(crop.at for crop in crops):
        labels = [crop.label for crop in crops if crop.at == place]
        _check_place(labels, needed(present, model), present, model)


def slides_for_crops(
    store: Store, model: ModelRecord, wanted: Sequence[int], count: int
) -> tuple[RegionBank, list[str]]:
    """Find the slides of a model's training regions that can give a crop of each class.

    Args:
        store: holds the regions.
        model: the model.
        wanted: the classes.
        count: number of slides that are needed at least.

    Raises:
        InputError: there are fewer.
    """
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
    return bank, slides


def _check_place(
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
        raise InputError(
            f"no crop is given of {all_quoted(missing)}, which the label map holds: give a crop of "
            "each class of the map, or none at all"
        )


def _named(label: int, names: Sequence[str]) -> str:
    return repr(names[label]) if label < len(names) else str(label)
