"""Putting the label map and the crops of a field, or of an edit, into the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from shared.arrays import UInt8
from shared.contracts.base import LabelClass, spelling
from shared.contracts.field import FIELD_INPUTS
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, write_label_map
from shared.imaging.mask_values import Lookup, MaskValuesError, lookup
from shared.imaging.masks import Mask
from shared.storage import Store, sha256

MIN_CROP_SIDE = 8


def model_labels(mask: Mask, model: ModelRecord) -> Lookup:
    """Find the model's class of each value of a mask; see `lookup`.

    Raises:
        InputError: a value belongs to no class, or the mask cannot be read.
    """
    try:
        return lookup(mask, model.classes, {})
    except MaskValuesError as error:
        raise InputError(
            f"{error.wrong}; the labels of {model.ref} are 0 to {len(model.classes) - 1}: "
            f"{', '.join(model.classes.names)}"
        ) from error


def find_tissue(tissue: str, model: ModelRecord) -> LabelClass:
    """Return the model's class of a tissue, whose name is compared as `spelling` says.

    Raises:
        InputError: the model has no such class.
    """
    known = model.classes.items[model.classes.first :]
    for item in known:
        if spelling(item.name) == spelling(tissue):
            return item
    names = ", ".join(item.name for item in known)
    raise InputError(f"{model.ref} has no tissue {tissue!r}; it knows {names}")


def put_label_map(store: Store, mask: Mask, model: ModelRecord) -> str:
    """Store a mask at the model's resolution, and return its key.

    Raises:
        InputError: the mask is damaged, turned, or has values beyond the model's classes.
    """
    if mask.orientation != 1:
        raise InputError(
            f"mask {mask.path.name} states the EXIF orientation {mask.orientation}: save it "
            "upright, without this tag"
        )
    labels = model_labels(mask, model)

    def strips() -> Iterator[UInt8]:
        for top in range(0, mask.height, LABEL_TILE):
            yield labels(mask.rows(top, min(top + LABEL_TILE, mask.height)))

    digest = hashlib.sha256(f"{mask.width}×{mask.height} px, {model.mpp} µm/px".encode())
    for rows in strips():
        digest.update(rows.tobytes())
    key = f"{FIELD_INPUTS}{digest.hexdigest()}.tif"
    with store.writing(key) as path:
        write_label_map(path, strips(), mask.width, mask.height, model.mpp)
    return key


def put_crop(store: Store, tissue: str, pixels: UInt8, model: ModelRecord) -> GivenCrop:
    """Store a crop of a class, uint8 RGB (side, side, 3).

    Raises:
        InputError: the model has no such class, or the crop is no square of a fitting side.
    """
    label = find_tissue(tissue, model).index
    height, width = pixels.shape[:2]
    if height != width or not MIN_CROP_SIDE <= width <= model.size:
        raise InputError(
            f"the crop of {tissue!r} has {width}×{height} px: give a square of {MIN_CROP_SIDE} to "
            f"{model.size} px"
        )
    png = encode_png(np.ascontiguousarray(pixels))
    key = f"{FIELD_INPUTS}{sha256(png)}.png"
    store.put(key, png)
    return GivenCrop(label=label, pixels=key)
