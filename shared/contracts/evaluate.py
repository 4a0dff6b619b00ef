"""Evaluate: a synthetic dataset against held-out real regions → report.

reports/<report>/report.json, report.html, sheet.png
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from shared.contracts.base import Name, Request, Split
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import dataset_key


class EvaluateRequest(Request):
    """Measure a synthetic dataset."""

    stage: ClassVar[str] = "evaluate"

    report: Name
    dataset: Name
    regions: Name | None = Field(None, description="real region set; default: the model's own")
    real_train: tuple[Split, ...] = Field(("train",), description="splits the segmenter trains on")
    real_test: tuple[Split, ...] = Field(("test",), description="splits everything is tested on")
    encoder: str = Field("embedded", description="encoder of the Fréchet distance")
    encoder_weights: str | None = None
    segmenter_encoder: str = "resnet18"
    segmenter_steps: int = Field(300, ge=1)
    segmenter_batch: int = Field(16, ge=1)
    seeds: int = Field(1, ge=1, le=20)
    seed: int = 0

    def inputs(self) -> list[str]:
        sets = [region_set_key(self.regions)] if self.regions else []
        return [dataset_key(self.dataset, "dataset.json"), *sets]


def report_key(report: str, name: str) -> str:
    """Key of one of a report's objects."""
    return f"reports/{report}/{name}"
