"""The paper's ablation: the same maps and seeds, with and without map and crops, in one report."""

from __future__ import annotations

from typing import Any

from shared.contracts.base import Request, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import Condition, CropSource, DatasetRequest, MapSource
from shared.errors import InputError
from shared.models import read_model
from shared.storage import ObjectStore

CONDITIONS: tuple[Condition, ...] = ("none", "map", "crops", "both")
"""The rows of an ablation, by the condition that the model is given."""
IMAGENET_ENCODERS = ("efficientnet-lite0", "efficientnet-lite2")
"""ImageNet's two encoders that models are measured with, unless others are named."""


def counterparts(
    dataset: str,
    model: ModelRef,
    split: Split,
    images: int,
    condition: Condition = "both",
    **sampling: Any,
) -> DatasetRequest:
    """Request synthetic images of a split's maps and crops.

    Outside the training split maps are neither turned nor mirrored, so that each image has a
    real counterpart.

    Args:
        dataset: name of the dataset.
        model: the version that makes it.
        split: the split of the maps, and of the crops, which come from the map's own slide.
        images: number of images.
        condition: the condition that the model is given.
        sampling: `steps`, `seed` and fields of `GuidanceScale`.
    """
    return DatasetRequest.model_validate(
        {
            "dataset": dataset,
            "model": model.name,
            "version": model.version,
            "images": images,
            "condition": condition,
            "maps": MapSource(splits=(split,), augment=split == "train"),
            "crops": CropSource(splits=(split,), slide="same"),
            **sampling,
        }
    )


def study(
    store: ObjectStore,
    model: ModelRef,
    *,
    images: int,
    evaluate: EvaluateRequest,
    sampling: dict[str, Any],
    map_only: dict[str, Any],
    embedding: ModelRef | None = None,
) -> list[Request]:
    """Return the requests of a study, in order.

    Every test region gives its map to one image of every row.

    Args:
        store: holds the models and the region set.
        model: the version to study.
        images: size of the dataset, made of training slides, that segmenters are trained on.
        evaluate: the report to make. Its name is the study's: datasets are called
            `<name>-<row>`. Its datasets and rows are filled in.
        sampling: `steps`, `seed` and fields of `GuidanceScale`, for all datasets.
        map_only: other values of these fields for the rows of maps alone, which may need other
            guidance to be as good as the model can make them.
        embedding: a model with `embedding` conditioning for the row of that name. It is given
            embeddings of the same crops.

    Raises:
        InputError: `embedding` has another conditioning, or there is no region to measure on.
    """
    record, name = read_model(store, model), evaluate.report
    rows: dict[str, dict[str, Any]] = {
        condition: {"model": model, "condition": condition, **sampling} for condition in CONDITIONS
    }
    rows["map"] |= map_only
    if embedding is not None:
        _check_embedding(read_model(store, embedding))
        rows["embedding"] = rows["both"] | {"model": embedding}
    regions = _count_test_regions(store, record)
    tested = {row: f"{name}-{row}" for row in rows}
    seen = {row: f"{name}-seen-{row}" for row in rows}
    requests: list[Request] = []
    for row, fields in rows.items():
        requests.append(counterparts(tested[row], split="test", images=regions, **fields))
        requests.append(counterparts(seen[row], split="train", images=regions, **fields))
    requests.append(counterparts(name, model, "train", images, **sampling))
    update = {"dataset": name, "ablation": tested, "seen": seen}
    requests.append(evaluate.model_copy(update=update))
    return requests


def _check_embedding(model: ModelRecord) -> None:
    conditioning = model.recipe.denoiser.conditioning
    if conditioning != "embedding":
        raise InputError(
            f"{model.ref} is a model with {conditioning!r} conditioning: "
            "train one with --set recipe.denoiser.conditioning=embedding"
        )


def _count_test_regions(store: ObjectStore, model: ModelRecord) -> int:
    regions = store.get_model(region_set_key(model.regions), RegionSet)
    count = sum(part.regions for part in regions.of_split("test"))
    if not count:
        raise InputError(
            f"region set {model.regions!r} has no region in its test split: there is nothing to "
            "measure on"
        )
    return count
