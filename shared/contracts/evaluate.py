"""Evaluate: a synthetic dataset against held-out real regions → report.

reports/<report>/report.json                       Report
reports/<report>/report.html, sheet.png            the report for people
reports/<report>/reference-<encoder>.safetensors   statistics of the real test images' features
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.base import EncoderName, FileName, Name, Opens, Request, Seed, Split
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import dataset_key


class EvaluateRequest(Request):
    """Measure a synthetic dataset, and with it the model that made it."""

    stage: ClassVar[str] = "evaluate"

    report: Name
    dataset: Name
    regions: Name | None = Field(None, description="real region set; default: the model's own")
    real_train: tuple[Split, ...] = Field(
        ("train",), min_length=1, description="splits that segmenters are trained on"
    )
    real_test: tuple[Split, ...] = Field(
        ("test",), min_length=1, description="splits of the real test images"
    )
    ablation: dict[Name, Name] = Field(
        default_factory=dict,
        description="row (none, map, crops, both, …) → dataset made from maps and crops of the "
        "test split; rows differ only in the conditions that the model was given",
    )
    seen: dict[Name, Name] = Field(
        default_factory=dict,
        description="row → dataset made from maps and crops of training slides",
    )
    encoders: tuple[EncoderName, ...] = Field(
        ("embedded",), min_length=1, description="encoders whose features are compared"
    )
    encoder_weights: dict[str, FileName] = Field(
        default_factory=dict, description="encoder → key or path of its weights"
    )
    references: dict[str, FileName] = Field(
        default_factory=dict,
        description="encoder → key or path of statistics that another report saved, to "
        "compare the dataset with them too",
    )
    segmenter_encoder: Annotated[str, Opens.SEGMENTER] = "resnet18"
    segmenter_steps: int = Field(300, ge=1)
    segmenter_batch: int = Field(
        16, ge=2, description="images in a step; batch normalization needs at least two"
    )
    few: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the real regions for the segmenters of few regions",
    )
    seeds: int = Field(1, ge=1, le=20, description="repetitions of each segmenter")
    seed: Seed = 0

    def inputs(self) -> list[str]:
        sets = [region_set_key(self.regions)] if self.regions else []
        datasets = [self.dataset, *self.ablation.values(), *self.seen.values()]
        parts = ("dataset.json", "croissant.json")  # croissant.json: new images, new job
        return [*(dataset_key(name, part) for name in datasets for part in parts), *sets]

    def files(self) -> list[str]:
        return sorted({*self.encoder_weights.values(), *self.references.values()})

    def products(self) -> list[str]:
        return [f"reports/{self.report}"]


class ReportPart(BaseModel):
    """A part of a report; unknown keys are ignored, because they may be from another release."""

    model_config = ConfigDict(frozen=True)


class TrainingSet(StrEnum):
    """The images that a segmenter is trained on."""

    REAL = "real"
    SYNTHETIC = "synthetic"
    REAL_AND_SYNTHETIC = "both"
    FEW_REAL = "few"
    FEW_REAL_AND_SYNTHETIC = "few_both"


class RealSplit(ReportPart):
    """The real regions of one split that a report uses: for training, or for testing."""

    slides: tuple[str, ...] = Field(description="pseudonyms of the dataset; names in older reports")
    regions: int = Field(description="number of regions")
    patients: int | None = Field(None, description="number of patients; None if one is not known")
    classes: dict[str, int] = Field(
        default_factory=dict, description="class of the region set → regions that show it"
    )


class FidelityRow(ReportPart):
    """How close the images of one source (synthetic, real training, …) are to real test images.

    The test slides are divided into two halves. Each figure but `own_slides` is the mean of the
    comparisons with either half. Precision and recall: Kynkäänniemi et al. 2019. Density and
    coverage: Naeem et al. 2020.
    """

    frechet: float = Field(description="Fréchet distance")
    interval: tuple[float, float] = Field(description="90 % interval over resampled slides")
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    over_floor: float | None = Field(
        None, description="Fréchet distance divided by the distance between real images (the floor)"
    )
    own_slides: float | None = Field(
        None,
        description="Fréchet distance to other regions of the slides that the images come from",
    )


class ReferenceDistance(ReportPart):
    """Distance of the dataset to statistics that another report saved."""

    source: str
    n: tuple[int, int] = Field(description="number of images of the dataset, and of the reference")
    frechet: float


class Leakage(ReportPart):
    """Signs that images copy training images; real images of held-out slides serve as control."""

    authentic: float = Field(
        description="share of images that are further from their nearest training image than that "
        "image is from its own nearest one (AuthPct, Alaa et al. 2022)"
    )
    authentic_held_out: float = Field(description="`authentic` of held-out real images")
    excess_copies: float = Field(description="share of near copies minus the share by chance")
    excess_bound: float = Field(
        description="95 % of generators without copies stay below this excess"
    )
    significant: bool = Field(description="whether the excess is above the bound")
    c_t: float = Field(description="C_T of Meehan et al. 2020; copies push it well below 0")


class Membership(ReportPart):
    """How well an attack tells training images from images of held-out patients.

    The intervals are of 90 %, over resampled patients.
    """

    auc: float = Field(description="chance that a training image scores higher; 0.5: by guessing")
    auc_interval: tuple[float, float]
    found: float = Field(
        description="share of training images found at 1 % false alarms; 0.01: by guessing"
    )
    found_interval: tuple[float, float]
    n: tuple[int, int] = Field(description="number of training, and of held-out images")
    patients: tuple[int, int]


class PerPatient(ReportPart):
    """Kernel distances of images to the other real images of the patient they were made from.

    The rows besides those of the ablation are `other`, real images of other patients, and `same`,
    random halves of the patient's own images. All are means over patients.
    """

    patients: int = Field(description="number of patients")
    distance: dict[str, float] = Field(
        description="row → mean kernel distance (Bińkowski et al. 2018, unbiased)"
    )
    spread: dict[str, float] = Field(
        description="row → sample standard deviation of the distance over patients"
    )
    gain: float = Field(
        description="share of the distance of the images made from maps alone that crops remove"
    )
    gain_interval: tuple[float, float] = Field(description="90 %, over resampled patients")
    most: float = Field(
        description="the gain of the patient's own images over those of other patients: about 1, "
        "but for chance"
    )


class Retrieval(ReportPart):
    """How often an image's own crop is found among other crops of the same class."""

    top1: float | None = Field(description="share of hits; None without queries")
    n: int = Field(description="number of queries")
    skipped: int = Field(description="queries left out because other crops are too few")
    chance: float | None = Field(description="share of hits by guessing")


class Fidelity(ReportPart):
    """Distances of all sources of images to real test images, by the features of one encoder."""

    n: int = Field(description="number of images on each side of a distance")
    views: int = Field(description="number of turned views of each image")
    dim: int = Field(description="width of the features")
    reliable: bool = Field(description="whether n is at least twice dim")
    rows: dict[str, FidelityRow] = Field(
        description="source of images → distances; empty if there are too few images"
    )
    n_own_slides: int | None = Field(
        None, description="number of images on each side of own_slides"
    )


class EncoderFigures(Fidelity):
    """All figures that come from the features of one encoder."""

    encoder: str
    license: str
    reference: ReferenceDistance | None = None
    leakage: dict[str, Leakage] = Field(description="source of images → leakage")
    retrieval: dict[str, Retrieval] = Field(description="source of images → retrieval of crops")
    membership: Membership | None = Field(
        None, description="attack by the nearest synthetic image; None: not measured"
    )
    per_patient: PerPatient | None = Field(None, description="None: not measured")


class Copying(ReportPart):
    """Mean share of a crop's textured blocks that reappear in an image."""

    made: float | None = Field(description="share in the images made from the crops")
    chance: float | None = Field(description="share in the real regions of the maps")
    n: int = Field(description="number of crops for `made`")
    n_chance: int = Field(description="number of crops for `chance`")


class Likeness(ReportPart):
    """Mean similarity of real images and their reconstructions by the autoencoder."""

    psnr: float = Field(description="dB")
    ssim: float
    n: int = Field(description="images")


class Appearance(ReportPart):
    """Measures of how well images take up the look of their crops."""

    stain: dict[str, float] = Field(description="row → mean stain error, optical density")
    copying: Copying
    retrieval: dict[str, Retrieval] = Field(description="row → retrieval by staining")
    autoencoder: Likeness
    membership: Membership | None = Field(
        None, description="attack by a call of the denoiser; None: not measured"
    )
    per_patient: PerPatient | None = Field(None, description="by staining; None: not measured")
    detail: dict[str, float] = Field(
        default_factory=dict,
        description="row → power of optical density beyond a quarter of a cycle per pixel, divided "
        "by that of the real test images",
    )


class SegmenterSettings(ReportPart):
    """The training settings of the segmenters."""

    architecture: str
    encoder: str
    imagenet: bool = Field(False, description="whether the encoder starts from ImageNet's weights")
    steps: int
    batch: int
    seeds: int
    few: float | None = Field(
        description="share of the real regions in the sets `few` and `few_both`"
    )


class SegmentationScores(ReportPart):
    """Scores of segmenters on one set of images; means over seeds."""

    mean_iou: float
    spread: float | None = Field(description="sample standard deviation over seeds; None: one seed")
    accuracy: float = Field(description="share of labelled pixels")
    iou: dict[str, float | None] = Field(
        description="class → IoU; None if no label map has the class"
    )
    n: int = Field(description="number of images scored")
    seeds: int
    trained_on: int | None = Field(None, description="number of images trained on")


class Report(ReportPart):
    """All figures of an evaluation, and the data behind them; None means not measured."""

    report: str
    dataset: str
    images: int = Field(description="number of images of the dataset")
    refused: int = Field(0, description="images that the dataset's bounds on copies refused")
    missing: int = Field(0, description="images left out of the dataset for that")
    model: str = Field(description="<name>/<version>")
    size: int = Field(description="side of an image, pixels")
    mpp: float = Field(description="µm per pixel")
    proportions: dict[str, float] = Field(description="class → share in the dataset")
    regions: str = Field(description="name of the real region set")
    labels: str = Field(description="source of the real labels: 'annotation', or 'clusters/<run>'")
    held_out: bool = Field(
        description="whether no training, and not the dataset, used the test slides"
    )
    cautions: tuple[str, ...] = Field(
        description="why figures may be too good, and which classes have no region"
    )
    real_train: RealSplit
    real_test: RealSplit
    fidelity: tuple[EncoderFigures, ...] = ()
    appearance: Appearance | None
    segmenter: SegmenterSettings
    segmentation: dict[TrainingSet, SegmentationScores | None] = Field(default_factory=dict)
    faithfulness: SegmentationScores | None = Field(
        description="scores, on synthetic images, of segmenters trained on real images"
    )


def report_key(report: str, name: str) -> str:
    """Return the key of an object of a report."""
    return f"reports/{report}/{name}"
