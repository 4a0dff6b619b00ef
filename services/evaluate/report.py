"""The report: all figures as one record, and a page that explains them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from jinja2 import Environment

from services.evaluate.data import Material, RealPairs
from services.evaluate.usefulness import ImageScores, SegmenterResult
from shared.contracts.evaluate import (
    Appearance,
    EncoderFigures,
    EvaluateRequest,
    RealSplit,
    Report,
    SegmentationScores,
    SegmenterSettings,
    TrainingSet,
)
from shared.contracts.regions import class_count
from shared.encoders import REGISTRY


def summarize(
    request: EvaluateRequest,
    material: Material,
    encoders: Sequence[EncoderFigures],
    appearance: Appearance | None,
    segmenters: Sequence[SegmenterResult],
    gaps: Sequence[str],
) -> Report:
    """Collect the figures of all shards, and the facts of the compared images, in one report.

    Args:
        request: the request of the job.
        material: the compared images.
        encoders: figures of the encoders whose shards are done.
        appearance: result of the appearance shard; None if it failed.
        segmenters: results of the segmenter shards that are done.
        gaps: sentences about classes that were never learnt, or are without real regions.
    """
    segmentation: dict[TrainingSet, SegmentationScores | None] = {}
    for source in TrainingSet:
        parts = [part for part in segmenters if part.source == source]
        trained_on = parts[0].n if parts else None
        segmentation[source] = _over_seeds([part.test for part in parts], material, trained_on)
    faithful = [part.faithfulness for part in segmenters if part.faithfulness is not None]
    return Report(
        report=request.report,
        dataset=material.dataset.dataset,
        images=material.dataset.images,
        refused=material.dataset.refused,
        missing=material.dataset.missing,
        model=material.dataset.model,
        size=material.dataset.size,
        mpp=material.dataset.mpp,
        proportions=material.dataset.proportions,
        regions=material.real.name,
        labels=material.real.labels,
        held_out=material.held_out,
        cautions=(*material.cautions, *gaps),
        real_train=_real_split(material, material.train_slides, material.train),
        real_test=_real_split(material, material.test_slides, material.test),
        fidelity=tuple(EncoderFigures.model_validate(dict(part)) for part in encoders),
        appearance=appearance,
        segmenter=SegmenterSettings(
            architecture="DeepLabV3+",
            encoder=request.segmenter_encoder,
            imagenet=request.segmenter_encoder in REGISTRY,
            steps=request.segmenter_steps,
            batch=request.segmenter_batch,
            seeds=request.seeds,
            few=request.few,
        ),
        segmentation=segmentation,
        faithfulness=_over_seeds(faithful, material),
    )


def _real_split(material: Material, slides: Sequence[str], pairs: RealPairs) -> RealSplit:
    """Count the patients, slides and regions of one split, and the regions of each class."""
    real = material.real
    parts = [part for part in real.slides if part.slide in set(slides)]
    patients = {part.patient for part in parts}
    # Where slides are divided between training and test, their counts are of no split.
    counted = len(pairs) == sum(part.regions for part in parts)
    return RealSplit(
        slides=tuple(slides),
        regions=len(pairs),
        patients=None if None in patients else len(patients),
        classes={
            item.name: class_count(parts, item.index)
            for item in real.classes.items[real.classes.first :]
            if counted and all(part.class_regions for part in parts if part.regions)
        },
    )


def _over_seeds(
    scores: Sequence[ImageScores], material: Material, trained_on: int | None = None
) -> SegmentationScores | None:
    """Return means and the sample standard deviation over seeds; None if nothing was measured."""
    values = [score.mean_iou for score in scores if score.mean_iou is not None]
    if not values:
        return None
    classes = material.dataset.classes
    per_class = [
        [value for value in column if value is not None]
        for column in zip(*(score.iou for score in scores), strict=True)
    ]
    means = [float(np.mean(column)) if column else None for column in per_class]
    accuracies = [score.accuracy for score in scores if score.accuracy is not None]
    return SegmentationScores(
        mean_iou=float(np.mean(values)),
        spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        accuracy=float(np.mean(accuracies)),
        iou=dict(zip(classes.names[classes.first :], means, strict=True)),
        n=scores[0].n,
        seeds=len(values),
        trained_on=trained_on,
    )


ROW_TITLES = {
    "floor": "floor: the other half of the real test slides",
    "real": "the real images of the maps",
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


def _rounded(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def html_report(report: Report, material: Material, sheet: bytes) -> str:
    """Render the report as one self-contained HTML page.

    Args:
        report: the figures.
        material: the compared images.
        sheet: the contact sheet, PNG bytes.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _rounded
    classes = material.dataset.classes
    source = files("services.evaluate").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        classes=classes.items[classes.first :],
        request=material.dataset.request,
        bounds=material.dataset.bounds,
        sampling=material.synthetic.samples.provenance(0),
        names=ROW_TITLES,
        sets=TrainingSet,
        sheet=base64.b64encode(sheet).decode(),
    )
