"""Evaluate: a synthetic dataset against held-out real regions → report.

reports/<report>/report.json, report.html, sheet.png
reports/<report>/reference-<encoder>.safetensors   statistics of the real test images, to share
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shared.contracts.base import Name, Request, Split
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import dataset_key


class EvaluateRequest(Request):
    """Measure a synthetic dataset, and with it the model that made it."""

    stage: ClassVar[str] = "evaluate"

    report: Name
    dataset: Name
    regions: Name | None = Field(None, description="real region set; default: the model's own")
    real_train: tuple[Split, ...] = Field(("train",), description="splits the segmenter trains on")
    real_test: tuple[Split, ...] = Field(("test",), description="splits everything is tested on")
    ablation: dict[Name, Name] = Field(
        default_factory=dict,
        description="row → dataset made from maps and crops of the test split, alike but for what "
        "the model was given (none, map, crops, both, …)",
    )
    seen: dict[Name, Name] = Field(
        default_factory=dict, description="the same rows, with maps and crops of training slides"
    )
    encoders: tuple[str, ...] = Field(
        ("embedded",), min_length=1, description="encoders of the Fréchet distances"
    )
    encoder_weights: dict[str, str] = Field(
        default_factory=dict, description="encoder → key or path of its weights"
    )
    references: dict[str, str] = Field(
        default_factory=dict,
        description="encoder → key or path of statistics that another report saved; the dataset "
        "is held against them too",
    )
    segmenter_encoder: str = "resnet18"
    segmenter_steps: int = Field(300, ge=1)
    segmenter_batch: int = Field(16, ge=1)
    few: float | None = Field(
        None, gt=0, lt=1, description="train segmenters on this share of the real regions too"
    )
    seeds: int = Field(1, ge=1, le=20)
    seed: int = 0

    def inputs(self) -> list[str]:
        sets = [region_set_key(self.regions)] if self.regions else []
        datasets = [self.dataset, *self.ablation.values(), *self.seen.values()]
        parts = ("dataset.json", "croissant.json")  # the latter has the digests of the images
        return [*(dataset_key(name, part) for name in datasets for part in parts), *sets]


def report_key(report: str, name: str) -> str:
    """Key of one of a report's objects."""
    return f"reports/{report}/{name}"
