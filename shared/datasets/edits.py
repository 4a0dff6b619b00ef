"""What an edit is made from: a picture, its label map, an area, and a crop of each class."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.arrays import UInt8
from shared.contracts.image import MAX_EDIT_SIDE
from shared.contracts.models import ModelRecord
from shared.diffusion.crops import Crop, CropRule, cropped_labels, take_typical_crop
from shared.errors import InputError
from shared.seeds import image_seed


def check_edit(
    model: ModelRecord,
    image: UInt8,
    labels: UInt8,
    area: NDArray[np.bool_] | None,
    given: Sequence[int],
) -> None:
    """Check the inputs of an edit.

    Args:
        model: the model that edits.
        image: uint8 RGB (h, w, 3).
        labels: its label map, uint8 (h, w), in the model's classes.
        area: bool (h, w), where tissue is painted; None: the whole is drawn again.
        given: the classes of the crops that are given.

    Raises:
        InputError: sizes differ or are beyond what is edited; the area is empty; the map has other
            classes; a crop is of a class that the map lacks, or there are two of a class; or the
            image shows less of a class that needs a crop than the smallest crop holds.
    """
    height, width = image.shape[:2]
    size = f"the image is {width}×{height} px"
    for name, array in (("label map", labels), ("area", area)):
        if array is not None and array.shape != (height, width):
            raise InputError(
                f"the {name} is {array.shape[1]}×{array.shape[0]} px, but {size}: give one of the "
                "image's size"
            )
    if not model.size <= min(height, width) <= max(height, width) <= MAX_EDIT_SIDE:
        raise InputError(
            f"{size}: {model.ref} edits images of {model.size} to {MAX_EDIT_SIDE} px a side"
        )
    names = model.classes.names
    if labels.max() >= len(names):
        raise InputError(
            f"the label map holds {labels.max()}; the labels of {model.ref} are 0 to "
            f"{len(names) - 1}: {', '.join(names)}"
        )
    if area is not None and not area.any():
        raise InputError("the area is empty: mark what to paint")
    for label in given:
        if not (labels == label).any():
            raise InputError(f"a crop is of {names[label]!r}, which the label map does not hold")
        if given.count(label) > 1:
            raise InputError(f"class {names[label]!r} has several crops: give one")
    beside = np.bincount((labels if area is None else labels[~area]).ravel(), minlength=len(names))
    rule = CropRule.of(model.recipe.denoiser, model.classes)
    least = 0 if area is None else rule.least_area * model.size**2
    for label in missing_crops(model, labels, given):
        if beside[label] <= least:
            raise InputError(
                f"the image shows {'too little' if beside[label] else 'no'} {names[label]!r} "
                "outside of the area: give a crop of it"
            )


def missing_crops(model: ModelRecord, labels: UInt8, given: Collection[int]) -> list[int]:
    """List the classes of a label map that need a crop and have none."""
    rule = CropRule.of(model.recipe.denoiser, model.classes)
    return [label for label in cropped_labels(labels, rule) if label not in given]


def edit_crops(
    model: ModelRecord,
    image: UInt8,
    labels: UInt8,
    area: NDArray[np.bool_] | None,
    given: Sequence[Crop],
    seed: int,
) -> list[Crop]:
    """Return the given crops, and for the other classes crops of the image beside the area.

    Args: those of `check_edit`, which must have passed.
    """
    rule = CropRule.of(model.recipe.denoiser, model.classes)
    rng = np.random.default_rng(image_seed(seed, 0))
    known = labels if area is None else np.where(area, 255, labels).astype(np.uint8)
    missing = missing_crops(model, labels, [crop.label for crop in given])
    own = [take_typical_crop(image, known, label, rule, rng, model.size) for label in missing]
    return [*given, *(crop for crop in own if crop is not None)]
