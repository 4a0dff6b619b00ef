"""The shard of one segmenter: choose the training set, train the segmenter, and score it."""

from __future__ import annotations

from services.evaluate.data import Material, Pairs, fewer_slides, spread
from services.evaluate.segmentation import (
    OUTPUT_STRIDE,
    IouScores,
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.contracts.evaluate import EvaluateRequest, ReportPart, TrainingSet
from shared.jobs import Context

MAX_SCORED = 2_000
"""Greatest number of images that a segmenter is scored on."""


class ImageScores(IouScores):
    """Scores of a segmenter, with the number `n` of images that it was scored on."""

    n: int


class SegmenterResult(ReportPart):
    """The scores of one segmenter; one shard trains and tests it.

    Attributes:
        source: kind of the training set.
        seed: number of the repetition, from 0.
        n: number of training images.
        test: scores on real test images.
        faithfulness: scores on synthetic images, with their label maps as the truth; only
            segmenters trained on `TrainingSet.REAL` have them.
    """

    source: TrainingSet
    seed: int
    n: int
    test: ImageScores
    faithfulness: ImageScores | None = None


def training_sets(request: EvaluateRequest) -> list[TrainingSet]:
    """Return the training sets; those of few real images only if `request.few` is set."""
    few = (TrainingSet.FEW_REAL, TrainingSet.FEW_REAL_AND_SYNTHETIC)
    return [source for source in TrainingSet if request.few or source not in few]


def training_pairs(
    request: EvaluateRequest, material: Material, source: TrainingSet
) -> tuple[Pairs, Pairs | None]:
    """Return the images of a training set, and the synthetic images to mix in (None: no mixing)."""
    match source:
        case TrainingSet.REAL:
            return material.train, None
        case TrainingSet.SYNTHETIC:
            return material.synthetic, None
        case TrainingSet.REAL_AND_SYNTHETIC:
            return material.train, material.synthetic
    few = fewer_slides(material.train, request.few or 1)
    return few, material.synthetic if source == TrainingSet.FEW_REAL_AND_SYNTHETIC else None


def segmenter_side(material: Material) -> int:
    """Return the side of the windows that segmenters see: the largest one that DeepLabV3+ takes."""
    return material.dataset.size // OUTPUT_STRIDE * OUTPUT_STRIDE


def measure_segmenter(
    request: EvaluateRequest, material: Material, source: TrainingSet, seed: int, context: Context
) -> SegmenterResult:
    """Train a segmenter on one training set, and score it on the real test images."""
    pairs, synthetic = training_pairs(request, material, source)
    size, classes = segmenter_side(material), material.dataset.classes
    steps = request.segmenter_steps
    model = make_segmenter(request.segmenter_encoder, classes, request.seed + seed)
    train_segmenter(
        model,
        pairs,
        first=classes.first,
        size=size,
        steps=steps,
        batch=request.segmenter_batch,
        seed=request.seed + seed,
        device=context.device,
        progress=lambda done: context.progress(done, steps, f"segmenter on {source}"),
        synthetic=synthetic,
    )

    def score(images: Pairs) -> ImageScores:
        numbers = spread(len(images), MAX_SCORED)
        counts = confusion(
            model, images, numbers, classes=classes, size=size, batch=request.segmenter_batch,
            device=context.device,
            progress=lambda done: context.progress(done, len(numbers), "scoring"),
        )  # fmt: skip
        return ImageScores(**dict(iou_scores(counts, classes.first)), n=len(numbers))

    return SegmenterResult(
        source=source,
        seed=seed,
        n=len(pairs) + (len(synthetic) if synthetic is not None else 0),
        test=score(material.test),
        faithfulness=score(material.map_and_crops) if source == TrainingSet.REAL else None,
    )
