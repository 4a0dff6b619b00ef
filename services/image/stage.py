"""The image stage: read the label map and crops, generate or edit one image, store it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from shared.arrays import UInt8
from shared.contracts.image import Edit, GivenCrop, ImageRequest, image_key
from shared.contracts.models import ModelRecord
from shared.datasets.edits import check_edit, edit_crops
from shared.datasets.given_crops import read_crop
from shared.diffusion.crops import Crop, move_crop
from shared.diffusion.editing import edit_sampler, paint, redraw, restain
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, mark_png
from shared.jobs import Context, Plan, Shard, Stage
from shared.models import read_model
from shared.seeds import image_seed
from shared.serving.generator import open_generator
from shared.serving.priority import Priority
from shared.storage import Store, named_by_hash


class ImageStage(Stage[ImageRequest]):
    """Makes single images."""

    name: ClassVar[str] = "image"
    request = ImageRequest

    def plan(self, request: ImageRequest, context: Context) -> Plan:
        return Plan(phases=((Shard(id="image"),),))

    def run(self, request: ImageRequest, shard: Shard, context: Context) -> dict[str, Any]:
        model = read_model(context.store, request.model_ref)
        labels = decode_png(named_by_hash(context.store, request.labels))
        if request.edit is None:
            image, mark = _generate(request, model, labels, context), Mark(str(model.ref))
        else:
            image = _edit(request, request.edit, model, labels, context)
            mark = Mark(str(model.ref), source="compositeWithTrainedAlgorithmicMedia")
        context.store.put(image_key(request.image), mark_png(encode_png(image), mark))
        return {"images": 1}

    def finish(
        self, request: ImageRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        return {"image": image_key(request.image)}


def _generate(request: ImageRequest, model: ModelRecord, labels: UInt8, context: Context) -> UInt8:
    if labels.shape != (model.size, model.size):
        raise InputError(
            f"the label map has shape {labels.shape}, but {request.model}/{request.version} "
            f"makes images of {model.size} px: give one channel of {model.size}×{model.size}"
        )
    store, seed = context.store, image_seed(request.seed, 0)
    rng = np.random.default_rng(seed)
    crops = [_place_crop(store, crop, labels, model, rng) for crop in request.crops]
    generator, _ = open_generator(
        store, model, context.device, Priority.INTERACTIVE, tenant=context.tenant
    )
    images = generator.generate(labels[None], [crops], [seed], request.sampling(model))
    image: UInt8 = images[0]
    return image


def _edit(
    request: ImageRequest, edit: Edit, model: ModelRecord, labels: UInt8, context: Context
) -> UInt8:
    """Paint into the given image, or draw it again, by PyTorch in this process."""
    store = context.store
    image = decode_png(named_by_hash(store, edit.image))
    area = None if edit.area is None else decode_png(named_by_hash(store, edit.area)) > 0
    rng = np.random.default_rng(image_seed(request.seed, 1))
    given = [read_crop(store, crop, model, rng) for crop in request.crops]
    check_edit(model, image, labels, area, [crop.label for crop in given])
    crops = edit_crops(model, image, labels, area, given, request.seed)
    loaded, sampling = load_model(store, model.ref, context.device), request.sampling(model)
    sampler = edit_sampler(loaded, labels, crops, request.seed, sampling)
    sampler.watch = context.progress  # raises once the job is cancelled
    if area is not None:
        return paint(sampler, image, area, edit.border)
    if edit.restain:
        classes = [crop.label for crop in given]
        return restain(sampler, image, edit.strength, sampling.staining, classes)
    return redraw(sampler, image, edit.strength, sampling.staining)


def _place_crop(
    store: Store,
    given: GivenCrop,
    labels: UInt8,
    model: ModelRecord,
    rng: np.random.Generator,
) -> Crop:
    """Read a crop or cut it out of a region, and place it on its class in the label map.

    Raises:
        InputError: the class is not in the label map or not in the region, or the crop is
            not a square of at most the image's size.
    """
    placed = move_crop(read_crop(store, given, model, rng), labels, rng)
    if placed is None:
        raise InputError(f"a crop is of class {given.label}, which the label map does not hold")
    return placed
