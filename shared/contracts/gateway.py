"""Gateway: bodies and answers of its HTTP API; requests of stages are in their own modules.

datasets/<id>/submission.json   Submission, the record that it keeps in the store
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Base64Bytes, Field, model_validator

from shared.contracts.base import Contract, FileName, Name
from shared.contracts.cluster import TissueType
from shared.contracts.image import BORDER, MAX_BORDER, RESTAINING, STRENGTH
from shared.contracts.ingest import SlideRecord
from shared.contracts.jobs import JobStatus, State
from shared.contracts.models import ModelChoice, ModelRecord
from shared.contracts.synthesize import DatasetRequest, SamplingChoice, dataset_key

MAX_SLIDE_BYTES = 1 << 40
"""Size of the largest file of a slide."""


class Submission(Contract):
    """A request for a dataset, the job that makes it, and the token that sent it."""

    job: str
    token: str | None = Field(None, description="name of the token; None: not sent to a gateway")
    created: datetime | None = None
    request: DatasetRequest


class DatasetStatus(Contract):
    """The state and progress of a dataset."""

    dataset: str
    model: str = Field(description="<name>/<version>")
    job: str
    state: State
    images: int = Field(description="number of images requested")
    made: int = Field(description="number of images made so far, without refused copies")
    shards: int = Field(description="number of shards")
    shards_done: int
    failed: dict[str, str] = Field(description="shard → error; at most 100")
    images_per_second: float | None = Field(
        description="rate of all workers; None while no worker is busy"
    )
    seconds_left: float | None
    created: datetime | None
    result: dict[str, Any] | None = Field(description="result of the job; None until it ends")


class DatasetEstimate(Contract):
    """The expected cost of a dataset, measured on earlier datasets of the same model."""

    images: int
    seconds: float | None = Field(
        description="time of one worker; None if the model has made no dataset yet"
    )
    bytes: int | None = Field(description="size in the store, without exports")
    measured_datasets: int = Field(description="number of earlier datasets measured")
    measured_images: int = Field(description="number of their images that were measured")
    evaluations: int = Field(
        description="denoiser evaluations per image for the requested settings"
    )


class DatasetPage(Contract):
    """A page of datasets, sorted by name."""

    items: tuple[DatasetStatus, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class ShardLink(Contract):
    """The download link of a finished shard."""

    shard: Name
    url: str = Field(
        description="absolute (presigned: send no token), or relative (send the token)"
    )
    bytes: int
    sha256: str


class ShardPage(Contract):
    """A page of a dataset's finished shards, in order."""

    items: tuple[ShardLink, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class JobPage(Contract):
    """A page of jobs, sorted by id."""

    items: tuple[JobStatus, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


def submission_key(dataset: str) -> str:
    """Return the key of a dataset's submission."""
    return dataset_key(dataset, "submission.json")


MAX_CROPS = 64


class CropBody(Contract):
    """A crop of one class: a picture, or a region to cut it from."""

    tissue: str = Field(max_length=128, description="name of the class")
    png: Base64Bytes | None = Field(None, description="base64 of a square PNG")
    regions: Name | None = Field(None, description="region set to cut from")
    region: Name | None = Field(None, description="key of the region in that set")

    @model_validator(mode="after")
    def _one_source(self) -> CropBody:
        if (self.png is None) == (self.regions is None or self.region is None):
            raise ValueError("a crop needs either png, or regions and region")
        return self


class ImageBody(ModelChoice, SamplingChoice):
    """A request for one image."""

    labels: Base64Bytes = Field(
        description="base64 of a PNG of class indices (grey or palette), of the model's size"
    )
    crops: tuple[CropBody, ...] = Field((), max_length=MAX_CROPS)
    steps: int | None = Field(None, ge=1, le=200, description="default: the model's")
    seed: int = Field(0, ge=0, lt=2**63)


class EditBody(ModelChoice, SamplingChoice):
    """A request to edit an image."""

    action: Literal["paint", "restain", "vary"] = Field(
        description="paint: new tissue in an area; restain: the whole in the staining of the "
        "crops, its cells stay; vary: the whole again, in its own appearance"
    )
    image: Base64Bytes = Field(description="base64 of a PNG, at the model's µm/px")
    labels: Base64Bytes = Field(
        description="base64 of a PNG of class indices (grey or palette), of the image's size"
    )
    area: Base64Bytes | None = Field(
        None, description="paint: base64 of a grey PNG of the image's size, not 0 where to paint"
    )
    border: int = Field(
        BORDER,
        ge=0,
        le=MAX_BORDER,
        description="paint: pixels over which new tissue fades into the old",
    )
    strength: float = Field(
        STRENGTH,
        ge=0,
        le=1,
        description="restain and vary: time from which it is denoised again; 0: little changes",
    )
    crops: tuple[CropBody, ...] = Field(
        (),
        max_length=MAX_CROPS,
        description="classes of the map without one get a crop of the image itself",
    )
    steps: int | None = Field(None, ge=1, le=200, description="default: the model's")
    staining: float | None = Field(
        None,
        ge=0,
        le=1,
        description=f"restain ({RESTAINING}) and vary (0): strength of matching the staining of "
        "the crops",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fits_the_action(self) -> EditBody:
        if (self.action == "paint") != (self.area is not None):
            raise ValueError("paint needs an area, and restain and vary take none")
        if self.action == "restain" and not self.crops:
            raise ValueError("restain needs crops: they give the wanted staining")
        return self


class SlideInfo(Contract):
    """A slide in the store, ingested or not."""

    slide: Name
    source: str | None = Field(
        description="key or path of the main file, as `source` of an ingest request"
    )
    files: dict[str, int] = Field(description="key → size in bytes of each of its files")
    annotation: str | None = Field(
        description="key of the annotation, as `labels` of an ingest request"
    )
    record: SlideRecord | None = Field(description="None until it is ingested")
    label_maps: dict[str, str] = Field(
        default_factory=dict, description="cohort → key of the label map that ingest made"
    )


class SlidePage(Contract):
    """A page of slides, sorted by name."""

    items: tuple[SlideInfo, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class SlideReference(Contract):
    """A reference to a slide elsewhere in the store, kept at `slides/<slide>/reference.json`."""

    slide: Name
    source: FileName = Field(max_length=1024, description="key of the main file")


class UploadBody(Contract):
    """A request to upload a large file in parts."""

    file: str = Field(min_length=1, max_length=256, description="file name in the slide's folder")
    bytes: int = Field(ge=1, le=MAX_SLIDE_BYTES, description="size of the file")


class UploadPart(Contract):
    """One part of an upload."""

    number: int
    bytes: int
    url: str = Field(
        description="URL to PUT the part to: absolute without a token, or relative with the token"
    )


class Upload(Contract):
    """An upload in progress: the record at `uploads/<upload>.json`."""

    upload: Name
    slide: Name
    file: str
    bytes: int
    part_bytes: int = Field(description="size of every part but the last")
    parts: int = Field(description="number of parts")


UPLOADS = "uploads/"
"""Prefix of the records of begun uploads."""


class UploadRecord(Contract):
    """The stored record of a begun upload; `internal` is the store's id of it."""

    upload: Upload
    internal: str


def upload_key(upload: str) -> str:
    """Return the key of the record of an upload."""
    return f"{UPLOADS}{upload}.json"


class UploadStatus(Contract):
    """The parts of an upload that have arrived, and links for those that are missing."""

    upload: Upload
    arrived: tuple[int, ...] = Field(description="numbers of the parts")
    missing: tuple[UploadPart, ...] = Field(description="the next parts, at most 100")


class Names(Contract):
    """A page of names, sorted."""

    items: tuple[str, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class RegionRow(Contract):
    """One region of a set, with its place and its class shares."""

    key: str
    slide: str
    x: int = Field(description="upper left corner, level-0 pixels")
    y: int
    fractions: tuple[float, ...] = Field(description="share of each class, background first")


class RegionPage(Contract):
    """A page of a slide's regions, sorted by key."""

    items: tuple[RegionRow, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class AtlasType(Contract):
    """A tissue type of a clustering."""

    label: int = Field(description="cluster + 1")
    type: TissueType
    patches: int = Field(description="number of patches")
    mean_distance: float = Field(description="mean cosine distance of the patches to the centroid")


class Atlas(Contract):
    """The tissue types of a clustering."""

    run: str
    cohort: str
    encoder: str
    types: tuple[AtlasType, ...]


class TypePlace(Contract):
    """A slide with patches of a tissue type."""

    slide: str
    patches: int = Field(description="number of patches of the type on the slide")
    x: int = Field(
        description="upper left corner of the patch nearest to the centroid, level-0 pixels"
    )
    y: int
    nearest: tuple[tuple[int, int], ...] = Field(
        description="corners (x, y) of the patches nearest to the centroid, nearest first"
    )


class TypePlaces(Contract):
    """A page of the slides with patches of a tissue type, sorted by name."""

    items: tuple[TypePlace, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class TrainingRun(Contract):
    """A training run with its job, curves and sample sheets."""

    run: str
    job: str | None
    state: State | None
    curves: dict[str, tuple[dict[str, float], ...]] = Field(
        description="vae, decoder or denoiser → rows of metrics"
    )
    samples: tuple[str, ...] = Field(description="names of the sample sheets, in order")


class ReportInfo(Contract):
    """The main figures of a report; the report itself names the data behind them."""

    report: str
    dataset: str
    model: str = Field(description="<name>/<version>")
    images: int
    held_out: bool = Field(description="whether the model was trained without the test slides")
    frechet: dict[str, float] = Field(description="encoder → Fréchet distance to real test images")
    floor: dict[str, float] = Field(
        description="encoder → Fréchet distance between real images of other slides"
    )
    mean_iou: dict[str, float] = Field(
        description="training set of a segmenter → mean IoU on real test images"
    )
    faithfulness: float | None = Field(
        description="mean IoU, on synthetic images, of a segmenter trained on real images"
    )


class ReportPage(Contract):
    """A page of reports, sorted by name."""

    items: tuple[ReportInfo, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")


class ModelInfo(Contract):
    """A model version, and whether Triton serves it."""

    record: ModelRecord
    served: bool = Field(description="whether Triton serves this version of the model")


class ModelPage(Contract):
    """A page of model versions."""

    items: tuple[ModelInfo, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")
