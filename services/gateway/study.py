"""The paper's ablation: the same maps and seeds, with and without map and crops, and one report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.contracts.base import Request, Split
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.synthesize import Condition, CropSource, DatasetRequest, MapSource

ROWS: tuple[Condition, ...] = ("none", "map", "crops", "both")
MEASURES = ("efficientnet-lite0", "efficientnet-lite2")
"""ImageNet's two encoders that a Fréchet distance is taken with unless others are asked for."""


def counterparts(
    dataset: str,
    model: str,
    version: str,
    split: Split,
    images: int,
    condition: Condition = "both",
    **sampling: Any,
) -> DatasetRequest:
    """Request images of a split's maps and crops.

    Maps are as they are outside the training split, so that each image has its real counterpart.

    Args:
        dataset: its name.
        model, version: what makes it.
        split: where maps and crops come from; the crops of the map's own slide.
        images: how many.
        condition: what the model is given.
        sampling: `steps`, `guidance_map`, `guidance_crops`, `seed`.
    """
    return DatasetRequest.model_validate(
        {
            "dataset": dataset,
            "model": model,
            "version": version,
            "images": images,
            "condition": condition,
            "maps": MapSource(splits=(split,), augment=split == "train"),
            "crops": CropSource(splits=(split,), slide="same"),
            **sampling,
        }
    )


def study(
    name: str,
    model: str,
    version: str,
    *,
    regions: int,
    images: int,
    evaluate: EvaluateRequest,
    sampling: dict[str, Any],
) -> Iterator[Request]:
    """Yield the requests of a study, in order.

    Args:
        name: of the study; its datasets are `<name>-…`, its report `<name>`.
        model, version: what is studied.
        regions: test regions; each gives its map to one image of every row.
        images: of the dataset, made of training slides, that segmenters are trained on.
        evaluate: report request; its datasets and rows are filled in.
        sampling: `steps`, `guidance_map`, `guidance_crops`, `seed` of all datasets.
    """

    rows = {row: f"{name}-{row}" for row in ROWS}
    seen = {row: f"{name}-seen-{row}" for row in ROWS}
    for row in ROWS:
        yield counterparts(rows[row], model, version, "test", regions, row, **sampling)
        yield counterparts(seen[row], model, version, "train", regions, row, **sampling)
    yield counterparts(name, model, version, "train", images, **sampling)
    update = {"report": name, "dataset": name, "ablation": rows, "seen": seen}
    yield evaluate.model_copy(update=update)
