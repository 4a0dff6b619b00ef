"""Crops that a request gives: pictures in the store, or cut out of regions."""

from __future__ import annotations

import numpy as np

from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.datasets.samples import check_fit
from shared.diffusion.crops import Crop, CropRule, take_typical_crop
from shared.errors import InputError
from shared.imaging.codec import decode_png
from shared.imaging.region_sets import load_region_set, read_region
from shared.storage import Store, named_by_hash


def read_crop(store: Store, given: GivenCrop, model: ModelRecord, rng: np.random.Generator) -> Crop:
    """Read a crop, or cut it out of its region.

    Raises:
        InputError: the crop is not a square of at most the image's size, or the region does not
            hold its class, or is smaller or at another resolution than the model's images.
    """
    if given.pixels is None:
        return _cut_crop(store, given, model, rng)
    pixels = decode_png(named_by_hash(store, given.pixels))
    if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or len(pixels) > model.size:
        raise InputError(
            f"a crop has shape {pixels.shape}: give an RGB square of at most {model.size} px"
        )
    return Crop(given.label, 0, 0, pixels)


def _cut_crop(store: Store, given: GivenCrop, model: ModelRecord, rng: np.random.Generator) -> Crop:
    name, key = str(given.regions), str(given.region)
    record = load_region_set(store, name)
    region = read_region(store, record, key)
    table = check_fit(record, model)
    rule = CropRule.of(model.recipe.denoiser, model.classes)
    crop = take_typical_crop(region.image, table[region.labels], given.label, rule, rng, model.size)
    if crop is None:
        raise InputError(f"a crop is of class {given.label}, which {given.region} does not hold")
    return crop
