"""Evaluate: a synthetic dataset against held-out real regions → report.

reports/<report>/report.json                       Report
reports/<report>/report.html, sheet.png            the same for people
reports/<report>/reference-<encoder>.safetensors   statistics of the real test images, to share
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

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


class ReportPart(BaseModel):
    """A part of a report; keys of another release are ignored, because reports outlive the code."""

    model_config = ConfigDict(frozen=True)


class TrainingSet(StrEnum):
    """The images that a segmenter is trained on."""

    REAL = "real"
    SYNTHETIC = "synthetic"
    REAL_AND_SYNTHETIC = "both"
    FEW_REAL = "few"
    FEW_REAL_AND_SYNTHETIC = "few_both"


class RealSplit(ReportPart):
    """The real regions of one side of the split."""

    slides: tuple[str, ...]
    regions: int


class FidelityRow(ReportPart):
    """Distance of one source of images to real test images; means over both halves of the slides.

    Precision and recall: Kynkäänniemi et al. 2019. Density and coverage: Naeem et al. 2020.
    """

    frechet: float = Field(description="Fréchet distance")
    interval: tuple[float, float] = Field(description="90 % interval over resampled slides")
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    over_floor: float | None = Field(None, description="Fréchet distance over that of the floor")
    own_slides: float | None = Field(
        None, description="Fréchet distance to other regions of the slides it was made from"
    )


class ReferenceDistance(ReportPart):
    """Distance of the dataset to statistics that another report saved."""

    source: str
    n: tuple[int, int] = Field(description="images of the dataset, and of the reference")
    frechet: float


class Leakage(ReportPart):
    """Whether synthetic images copy training images, beside real images of slides never seen."""

    authentic: float = Field(description="share outside the neighbour's own radius: AuthPct")
    authentic_held_out: float = Field(description="the same share of held-out real images")
    excess_copies: float = Field(description="share of near copies, less what chance explains")
    excess_bound: float = Field(description="excess that chance stays within 95 times of 100")
    significant: bool = Field(description="whether the excess is above the bound")
    c_t: float = Field(description="C_T of Meehan et al. 2020; well below 0: copies")


class Retrieval(ReportPart):
    """How often an image tells its own crop from other crops of the same class."""

    top1: float | None = Field(description="share of hits; None without queries")
    n: int = Field(description="queries")
    skipped: int = Field(description="queries left out for lack of other crops")
    chance: float | None = Field(description="of a hit")


class Fidelity(ReportPart):
    """Distances of all sources of images to real test images, by the features of one encoder."""

    n: int = Field(description="images on either side of a distance")
    views: int = Field(description="turns of each image")
    dim: int = Field(description="dimensions of a feature")
    reliable: bool = Field(description="whether n is at least twice dim")
    rows: dict[str, FidelityRow] = Field(
        description="source of images → figures; empty: too few images"
    )
    n_own_slides: int | None = Field(None, description="images on either side, for own_slides")


class EncoderFigures(Fidelity):
    """All figures that come from the features of one encoder."""

    encoder: str
    license: str
    reference: ReferenceDistance | None = None
    leakage: dict[str, Leakage] = Field(description="source of images → figures")
    retrieval: dict[str, Retrieval] = Field(description="source of images → figures")


class Copying(ReportPart):
    """Share of the crops' textured blocks that reappear in images."""

    made: float | None = Field(description="in the images made from the crops")
    chance: float | None = Field(description="in the real regions of the maps")
    n: int = Field(description="crops")
    n_chance: int


class Likeness(ReportPart):
    """How like real images are to their reconstructions; means."""

    psnr: float = Field(description="dB")
    ssim: float
    n: int = Field(description="images")


class Appearance(ReportPart):
    """Whether images look like the crops that they were given."""

    stain: dict[str, float] = Field(description="row → stain error, in units of optical density")
    copying: Copying
    retrieval: dict[str, Retrieval] = Field(description="row → retrieval by staining")
    autoencoder: Likeness


class SegmenterSettings(ReportPart):
    """How the segmenters were trained."""

    architecture: str
    encoder: str
    imagenet: bool = Field(False, description="whether its encoder starts from ImageNet's weights")
    steps: int
    batch: int
    seeds: int
    few: float | None = Field(description="share of the real regions that the few sets have")


class SegmentationScores(ReportPart):
    """Scores of segmenters on one set of images; means over seeds."""

    mean_iou: float
    spread: float | None = Field(description="sample standard deviation over seeds; None: one seed")
    accuracy: float = Field(description="share of labelled pixels")
    iou: dict[str, float | None] = Field(description="class → IoU; None where the truth has none")
    n: int = Field(description="images scored")
    seeds: int
    trained_on: int | None = Field(None, description="images trained on")


class Report(ReportPart):
    """All figures of an evaluation, and what they were measured on; None: not measured."""

    report: str
    dataset: str
    images: int
    model: str = Field(description="<name>/<version>")
    size: int = Field(description="side of an image, pixels")
    mpp: float = Field(description="µm per pixel")
    proportions: dict[str, float] = Field(description="class → share that was reached")
    regions: str = Field(description="the real region set")
    labels: str = Field(description="where the real labels come from")
    held_out: bool = Field(description="whether no training has seen the test slides")
    cautions: tuple[str, ...] = Field(description="what makes figures better than they should be")
    real_train: RealSplit
    real_test: RealSplit
    fidelity: tuple[EncoderFigures, ...] = ()
    appearance: Appearance | None
    segmenter: SegmenterSettings
    segmentation: dict[TrainingSet, SegmentationScores | None] = Field(default_factory=dict)
    faithfulness: SegmentationScores | None = Field(
        description="of segmenters of real images, on synthetic images against their maps"
    )


def report_key(report: str, name: str) -> str:
    """Key of one of a report's objects."""
    return f"reports/{report}/{name}"
