"""Checking what a field, or an edit, is made from, and putting it into the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.arrays import Int64, UInt8
from shared.contracts.base import Classes, LabelClass, spelling
from shared.contracts.field import FIELD_INPUTS, MAX_SIDE
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import wanted_shares
from shared.datasets.region_bank import RegionBank
from shared.errors import InputError, all_quoted, quoted
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap, write_label_map
from shared.imaging.mask_values import Lookup, MaskValuesError, lookup
from shared.imaging.masks import Mask, turned
from shared.imaging.region_sets import load_region_set
from shared.imaging.stored_slides import StoredLabelMap
from shared.storage import Store, check_room, sha256, sha256_file

MIN_CROP_SIDE = 8

BYTES_PER_PIXEL = {"jpeg": 0.5, "deflate": 2.0}
"""Bytes of the finished files and of the work per pixel, at least; latents take one more."""

MPP_TOLERANCE = 0.01


def check_field(
    store: Store,
    model: ModelRecord,
    width: int,
    height: int,
    compression: Literal["jpeg", "deflate"] = "jpeg",
) -> None:
    """Check that a field of a model can be made, by its size in pixels.

    Raises:
        InputError: it is too small for the model, too large, or the store has no room for it, by
            a low estimate.
    """
    size = f"the label map is {width}×{height} px"
    if min(width, height) < model.size:
        raise InputError(
            f"{size}, smaller than the images of {model.ref}: give at least "
            f"{model.size}×{model.size} px"
        )
    if max(width, height) > MAX_SIDE:
        raise InputError(f"{size}: give at most {MAX_SIDE:,} px along each side")
    needed = int(width * height * (1 + BYTES_PER_PIXEL[compression]))
    check_room(store, needed, f"a field of {width}×{height} px", "or ask for a smaller one")


def count_labels(labels: LabelMap, model: ModelRecord) -> Int64:
    """Count the pixels of each class in a label map, (classes,).

    Raises:
        InputError: the map is at another resolution, or has other classes.
    """
    _check_names("the label map", labels.names or model.classes.names, model)
    if abs(labels.mpp / model.mpp - 1) > MPP_TOLERANCE:
        raise InputError(
            f"the label map is at {labels.mpp:.4g} µm/px, but {model.ref} makes images at "
            f"{model.mpp:.4g}: give a map at the model's resolution"
        )
    counts = np.zeros(256, np.int64)
    for top in range(0, labels.height, LABEL_TILE):
        rows = labels.window(0, top, labels.width, min(LABEL_TILE, labels.height - top))
        counts += np.bincount(rows.ravel(), minlength=256)
    if counts[len(model.classes) :].any():
        raise InputError(
            f"the label map holds {int(np.flatnonzero(counts)[-1])}; the labels of {model.ref} are "
            f"0 to {len(model.classes) - 1}: {', '.join(model.classes.names)}"
        )
    return counts[: len(model.classes)]


def layout_shares(
    store: Store, model: ModelRecord, proportions: Mapping[str, float]
) -> list[float]:
    """Return the share of each of the model's classes in a sampled label map, with sum 1.

    Args:
        store: holds the model's regions.
        model: the model.
        proportions: class name → share of the labelled pixels. The other classes share the rest of
            them as in the training regions, and as many pixels are unlabelled as there.

    Raises:
        InputError: the proportions name an unknown class, have a sum above 1, or leave a rest to
            no class.
    """
    wanted = wanted_shares(proportions, model.classes)
    bank = RegionBank(store, load_region_set(store, model.regions), ("train",), model)
    usual = bank.shares.mean(0)
    others = usual.copy()
    others[[*range(model.classes.first), *wanted]] = 0
    rest = max(0.0, round(1 - sum(wanted.values()), 6))
    if rest and not others.any():
        raise InputError(
            f"the proportions leave {rest:.3g} of the labelled pixels to no class, because the "
            f"regions {model.regions!r} hold no other: give shares with the sum 1"
        )
    shares = others * rest / max(others.sum(), 1e-9)
    shares[list(wanted)] = list(wanted.values())
    shares *= usual[model.classes.first :].sum() / shares.sum()
    shares[: model.classes.first] = usual[: model.classes.first]
    return [float(share) for share in shares]


def model_labels(mask: Mask, model: ModelRecord, names: Mapping[str, str] | None = None) -> Lookup:
    """Find the model's class of each value of a mask; see `lookup`.

    `names` is its `label_names`.

    Raises:
        InputError: a value belongs to no class, or the mask cannot be read.
    """
    try:
        return lookup(mask, model.classes, dict(names or {}))
    except MaskValuesError as error:
        raise InputError(
            f"{error.wrong}; the labels of {model.ref} are 0 to {len(model.classes) - 1}: "
            f"{', '.join(model.classes.names)}"
        ) from error


def read_labels(mask: Mask, model: ModelRecord) -> UInt8:
    """Read a mask whole: the model's labels, upright, uint8 (h, w). Raises as `model_labels`."""
    return _upright(mask, model_labels(mask, model))


def area_labels(mask: Mask) -> Lookup:
    """Find which values of a mask are an area: all but 0. Raises `InputError`."""
    return lookup(mask, Classes.of("area"), {}, foreground=1)


def read_area(mask: Mask) -> NDArray[np.bool_]:
    """Read the area of a mask, upright, bool (h, w). Raises `InputError`."""
    return _upright(mask, area_labels(mask)) > 0


def _upright(mask: Mask, table: Lookup) -> UInt8:
    return turned(table(mask.rows(0, mask.height)), mask.orientation)


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
    raise InputError(f"{model.ref} has no tissue {quoted(tissue)}; it knows {names}")


def check_classes(found: StoredLabelMap, model: ModelRecord) -> None:
    """Raise `InputError` if the label map of a slide has other classes than a model."""
    _check_names(f"the label map {found.key}", found.classes.names, model)


def _check_names(what: str, names: Sequence[str], model: ModelRecord) -> None:
    if list(names) != model.classes.names:
        raise InputError(
            f"{what} has other classes ({all_quoted(names)}) than {model.ref} "
            f"({all_quoted(model.classes.names)}): give a map of these, as a file"
        )


def put_label_map(
    store: Store, mask: Mask, model: ModelRecord, names: Mapping[str, str] | None = None
) -> str:
    """Store a mask at the model's resolution, and return its key; `names` as in `model_labels`.

    Raises:
        InputError: the mask is damaged, turned, or has values beyond the model's classes.
    """
    if mask.orientation != 1:
        raise InputError(
            f"mask {mask.path.name} states the EXIF orientation {mask.orientation}: save it "
            "upright, without this tag"
        )
    labels = model_labels(mask, model, names)

    def strips() -> Iterator[UInt8]:
        for top in range(0, mask.height, LABEL_TILE):
            yield labels(mask.rows(top, min(top + LABEL_TILE, mask.height)))

    with tempfile.TemporaryDirectory(prefix="htd-map-") as folder:
        path = Path(folder) / "labels.tif"
        write_label_map(path, strips(), mask.width, mask.height, model.mpp, model.classes.names)
        key = f"{FIELD_INPUTS}{sha256_file(path)}.tif"
        store.put_file(key, path)
    return key


def check_crop(what: str, pixels: UInt8, model: ModelRecord) -> None:
    """Raise `InputError` if a crop, uint8 RGB (h, w, 3), is no square of a fitting side."""
    height, width = pixels.shape[:2]
    if height != width or not MIN_CROP_SIDE <= width <= model.size:
        raise InputError(
            f"{what} has {width}×{height} px: give a square of {MIN_CROP_SIDE} to {model.size} px"
        )


def put_crop(store: Store, tissue: str, pixels: UInt8, model: ModelRecord) -> GivenCrop:
    """Store a crop of a class, uint8 RGB (side, side, 3).

    Raises:
        InputError: the model has no such class, or the crop is no square of a fitting side.
    """
    label = find_tissue(tissue, model).index
    check_crop(f"the crop of {quoted(tissue)}", pixels, model)
    png = encode_png(np.ascontiguousarray(pixels))
    key = f"{FIELD_INPUTS}{sha256(png)}.png"
    store.put(key, png)
    return GivenCrop(label=label, pixels=key)
