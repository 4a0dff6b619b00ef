"""The ablation study: datasets of the same maps and seeds under each condition, in one report."""

from __future__ import annotations

from typing import Any

from shared.contracts.base import Request, Split
from shared.contracts.embed import embedded_key
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import (
    Condition,
    CropSource,
    DatasetRecord,
    DatasetRequest,
    MapSource,
    dataset_key,
)
from shared.errors import InputError
from shared.models import read_model
from shared.storage import ObjectNotFoundError, Store

CONDITIONS: tuple[Condition, ...] = ("none", "map", "crops", "both")
"""The rows of an ablation: no condition, the label map, the crops, and both."""
IMAGENET_ENCODERS = ("efficientnet-lite0", "efficientnet-lite2")
"""The default encoders of Fréchet distances; both are trained on ImageNet."""


def default_encoder(store: Store, dataset: str) -> str:
    """Return the encoder that a dataset's report compares features of, if none is named.

    It is the embedded encoder of the cohort of the dataset's model, if it was trained; else, as
    for a cohort of tiles, the first of `IMAGENET_ENCODERS`.
    """
    try:
        made = store.get_model(dataset_key(dataset, "dataset.json"), DatasetRecord)
        model = read_model(store, ModelRef.parse(made.model))
        cohort = store.get_model(region_set_key(model.regions), RegionSet).cohort
    except ObjectNotFoundError:
        return "embedded"  # the job says what is missing
    return "embedded" if store.exists(embedded_key(cohort)) else IMAGENET_ENCODERS[0]


def counterparts(
    dataset: str,
    model: ModelRef,
    split: Split,
    images: int,
    condition: Condition = "both",
    **sampling: Any,
) -> DatasetRequest:
    """Return a request for synthetic images from the label maps and crops of a split.

    The crops of an image come from the slide of its map. Outside the training split maps are
    neither rotated nor mirrored, so that each image has a real counterpart.

    Args:
        dataset: name of the dataset.
        model: the model version that makes the images.
        split: the split of the maps and crops.
        images: number of images.
        condition: the conditions that the model sees.
        sampling: `steps`, `seed`, `staining` and fields of `GuidanceScale`.
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
    store: Store,
    model: ModelRef,
    *,
    images: int,
    evaluate: EvaluateRequest,
    sampling: dict[str, Any],
    map_only: dict[str, Any],
    embedding: ModelRef | None = None,
) -> list[Request]:
    """Return the requests of an ablation study, in the order in which they must run.

    Each row of the ablation is a condition, with two datasets: `<name>-<row>` has one image for
    every test region, made from its map, and `<name>-seen-<row>` has as many from training maps.

    Args:
        store: holds the models and the region set.
        model: the model version to study.
        images: number of images in the dataset that segmenters are trained on; its maps and
            crops come from training slides.
        evaluate: the report to make. Its name is the name of the study, and begins the names of
            the study's datasets. This function fills in its datasets and rows.
        sampling: `steps`, `seed`, `staining` and fields of `GuidanceScale`, for all datasets.
        map_only: values that replace those of `sampling` in the row "map", because a model
            without crops may need another guidance scale for its best images.
        embedding: a model with `embedding` conditioning, for a row "embedding". It sees
            embeddings of the same crops.

    Raises:
        InputError: `embedding` has another conditioning, or the test split has no region.
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


def _count_test_regions(store: Store, model: ModelRecord) -> int:
    regions = store.get_model(region_set_key(model.regions), RegionSet)
    count = sum(part.regions for part in regions.of_split("test"))
    if not count:
        raise InputError(
            f"region set {model.regions!r} has no region in its test split: there is nothing to "
            "measure on"
        )
    return count
