"""The report: figures as JSON, and a page that explains each of them."""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment

from services.evaluate.data import Material
from shared.contracts.evaluate import EvaluateRequest
from shared.encoders import REGISTRY


def _over_seeds(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and sample standard deviation over seeds; None where nothing was measured."""
    values = [score["mean_iou"] for score in scores if score["mean_iou"] is not None]
    if not values:
        return None
    per_class = [
        [value for value in column if value is not None]
        for column in zip(*(score["iou"] for score in scores), strict=True)
    ]
    return {
        "mean_iou": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "accuracy": float(np.mean([s["accuracy"] for s in scores if s["accuracy"] is not None])),
        "iou": [float(np.mean(column)) if column else None for column in per_class],
        "n": scores[0]["n"],
        "seeds": len(values),
    }


def summarize(
    request: EvaluateRequest,
    material: Material,
    features: list[dict[str, Any]],
    appearance: dict[str, Any] | None,
    segmenters: list[dict[str, Any]],
) -> dict[str, Any]:
    """Gather all figures with what they were measured on.

    Args:
        features: summaries of the encoders that were done.
        appearance: summary of the appearance shard, None if it failed.
        segmenters: summaries of the segmenter shards that were done.

    Returns:
        The content of `report.json`; None stands for what was not measured.
    """
    classes = material.dataset.classes
    names = classes.names[classes.first :]

    def named(scores: dict[str, Any] | None) -> dict[str, Any] | None:
        if scores is None:
            return None
        return {**scores, "iou": dict(zip(names, scores["iou"], strict=True))}

    segmentation = {}
    for source in ("real", "synthetic", "both", "few", "few_both"):
        parts = [part for part in segmenters if part["source"] == source]
        scores = named(_over_seeds([part["test"] for part in parts]))
        segmentation[source] = scores and {**scores, "trained_on": parts[0]["n"]}
    faithful = [part["faithfulness"] for part in segmenters if part["source"] == "real"]
    return {
        "report": request.report,
        "dataset": material.dataset.dataset,
        "images": material.dataset.images,
        "model": material.dataset.model,
        "size": material.dataset.size,
        "mpp": material.dataset.mpp,
        "proportions": material.dataset.proportions,
        "regions": material.real.name,
        "labels": material.real.labels,
        "held_out": material.held_out,
        "cautions": material.cautions,
        "real_train": {"slides": material.train_slides, "regions": len(material.train)},
        "real_test": {"slides": material.test_slides, "regions": len(material.test)},
        "fidelity": [{k: v for k, v in part.items() if k != "nearest"} for part in features],
        "appearance": appearance,
        "segmenter": {
            "architecture": "DeepLabV3+",
            "encoder": request.segmenter_encoder,
            "imagenet": request.segmenter_encoder in REGISTRY,
            "steps": request.segmenter_steps,
            "batch": request.segmenter_batch,
            "seeds": request.seeds,
            "few": request.few,
        },
        "segmentation": segmentation,
        "faithfulness": named(_over_seeds(faithful)),
    }


ROWS = {
    "floor": "floor: the other half of the real test slides",
    "real": "the real regions of the maps",
    "train": "real training images",
    "dataset": "this dataset",
    "reconstruction": "real test images through the autoencoder",
    "none": "unconditional",
    "map": "map only",
    "crops": "crops only",
    "both": "map + crops",
    "embedding": "map + embedding",
    **{
        f"seen {row}": f"{name}, of training slides"
        for row, name in (
            ("none", "unconditional"), ("map", "map only"), ("crops", "crops only"),
            ("both", "map + crops"), ("embedding", "map + embedding"),
        )
    },
}  # fmt: skip


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def html_report(report: dict[str, Any], material: Material, sheet: bytes) -> str:
    """Render the page: self-contained, with the sheet inside."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    classes = material.dataset.classes
    source = files("services.evaluate").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        classes=classes.items[classes.first :],
        request=material.dataset.request,
        sampling=material.synthetic.samples.provenance(0),
        names=ROWS,
        sheet=base64.b64encode(sheet).decode(),
    )
