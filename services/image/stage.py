"""The image stage: read the label map and crops, generate one image, store it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from shared.arrays import UInt8
from shared.contracts.image import GivenCrop, ImageRequest, image_key
from shared.contracts.models import ModelRecord
from shared.datasets.given_crops import read_crop
from shared.diffusion.crops import Crop, move_crop
from shared.errors import InputError
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, mark_png
from shared.jobs import Context, Plan, Shard, Stage
from shared.models import read_model
from shared.seeds import image_seed
from shared.serving.generator import open_generator
from shared.serving.priority import Priority
from shared.storage import Store


class ImageStage(Stage[ImageRequest]):
    """Makes single images."""

    name: ClassVar[str] = "image"
    request = ImageRequest

    def plan(self, request: ImageRequest, context: Context) -> Plan:
        return Plan(phases=((Shard(id="image"),),))

    def run(self, request: ImageRequest, shard: Shard, context: Context) -> dict[str, Any]:
        store = context.store
        model = read_model(store, request.model_ref)
        labels = decode_png(store.get(request.labels))
        if labels.shape != (model.size, model.size):
            raise InputError(
                f"the label map has shape {labels.shape}, but {request.model}/{request.version} "
                f"makes images of {model.size} px: give one channel of {model.size}×{model.size}"
            )
        seed = image_seed(request.seed, 0)
        rng = np.random.default_rng(seed)
        crops = [_place_crop(store, crop, labels, model, rng) for crop in request.crops]
        generator, _ = open_generator(
            store, model, context.device, Priority.INTERACTIVE, tenant=context.tenant
        )
        images = generator.generate(labels[None], [crops], [seed], request.sampling(model))
        store.put(image_key(request.image), mark_png(encode_png(images[0]), Mark(str(model.ref))))
        return {"images": 1}

    def finish(
        self, request: ImageRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        return {"image": image_key(request.image)}


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
