"""The paper's ablation: the same maps and seeds, with and without map and crops, and one report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.contracts.base import Request, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.models import ModelRef
from shared.contracts.synthesize import Condition, CropSource, DatasetRequest, MapSource

ROWS: tuple[Condition, ...] = ("none", "map", "crops", "both")
MEASURES = ("efficientnet-lite0", "efficientnet-lite2")
"""ImageNet's two encoders that a Fréchet distance is taken with unless others are asked for."""


def counterparts(
    dataset: str,
    model: ModelRef,
    split: Split,
    images: int,
    condition: Condition = "both",
    **sampling: Any,
) -> DatasetRequest:
    """Request images of a split's maps and crops.

    Maps are as they are outside the training split, so that each image has its real counterpart.

    Args:
        dataset: its name.
        model: the version that makes it.
        split: where maps and crops come from; the crops of the map's own slide.
        images: how many.
        condition: what the model is given.
        sampling: `steps`, `seed`, and what of `GuidanceScale` is asked.
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
    name: str,
    model: ModelRef,
    *,
    regions: int,
    images: int,
    evaluate: EvaluateRequest,
    sampling: dict[str, Any],
    map_only: dict[str, Any],
    embedding: ModelRef | None = None,
) -> Iterator[Request]:
    """Yield the requests of a study, in order.

    Args:
        name: of the study; its datasets are `<name>-…`, its report `<name>`.
        model: the version that is studied.
        regions: test regions; each gives its map to one image of every row.
        images: of the dataset, made of training slides, that segmenters are trained on.
        evaluate: report request; its datasets and rows are filled in.
        sampling: `steps`, `seed`, and what of `GuidanceScale` is asked of all datasets.
        map_only: what of it is another for the rows of maps alone, so that they are as good as
            the model can make them.
        embedding: the model of the row 'embedding', which is given embeddings of the same crops.
    """
    asked: dict[str, dict[str, Any]] = {
        row: {"model": model, "condition": row, **sampling} for row in ROWS
    }
    asked["map"] |= map_only
    if embedding is not None:
        asked["embedding"] = asked["both"] | {"model": embedding}
    rows = {row: f"{name}-{row}" for row in asked}
    seen = {row: f"{name}-seen-{row}" for row in asked}
    for row, fields in asked.items():
        yield counterparts(rows[row], split="test", images=regions, **fields)
        yield counterparts(seen[row], split="train", images=regions, **fields)
    yield counterparts(name, model, "train", images, **sampling)
    update = {"report": name, "dataset": name, "ablation": rows, "seen": seen}
    yield evaluate.model_copy(update=update)
