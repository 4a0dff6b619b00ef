"""Gateway: the answers of its HTTP API; its requests are those of the services.

datasets/<id>/submission.json   Submission
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Base64Bytes, Field, model_validator

from shared.contracts.base import Contract, Name
from shared.contracts.cluster import TissueType
from shared.contracts.deploy import Engine
from shared.contracts.ingest import SlideRecord
from shared.contracts.jobs import JobStatus, State
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import DatasetRequest, SamplingChoice, dataset_key


class Submission(Contract):
    """Which job makes a dataset, and who asked for it."""

    job: str
    token: str | None = Field(None, description="name of the token; None: made without a gateway")
    created: datetime | None = None
    request: DatasetRequest


class DatasetStatus(Contract):
    """A dataset, made or in the making."""

    dataset: str
    model: str = Field(description="<name>/<version>")
    job: str
    state: State
    images: int = Field(description="that were asked for")
    made: int = Field(description="images made so far; those refused as copies are not among them")
    shards: int
    shards_done: int
    failed: dict[str, str] = Field(description="shard → why; at most 100")
    images_per_second: float | None = Field(description="of all workers; None where none is busy")
    seconds_left: float | None
    created: datetime | None
    result: dict[str, Any] | None = Field(description="what the job says in the end")


class DatasetEstimate(Contract):
    """What a dataset will cost, going by earlier ones of the same model."""

    images: int
    seconds: float | None = Field(
        description="of one worker; None where the model has made no dataset yet"
    )
    bytes: int | None = Field(description="in the store, without exports")
    measured_datasets: int = Field(description="that the estimate is derived from")
    measured_images: int
    evaluations: int = Field(description="of the denoiser per image, as asked for")


class DatasetPage(Contract):
    """Some of the datasets, by name."""

    items: tuple[DatasetStatus, ...]
    next: str | None = Field(description="`cursor` of the next page")


class ShardLink(Contract):
    """Where a finished shard can be downloaded."""

    shard: str
    url: str = Field(description="absolute: presigned, no token needed; else relative, with token")
    bytes: int
    sha256: str


class ShardPage(Contract):
    """Some of a dataset's shards, in order."""

    items: tuple[ShardLink, ...]
    next: str | None = Field(description="`cursor` of the next page")


class JobPage(Contract):
    """Some of the jobs, by id."""

    items: tuple[JobStatus, ...]
    next: str | None = Field(description="`cursor` of the next page")


def submission_key(dataset: str) -> str:
    """Key of a dataset's submission."""
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


class ImageBody(SamplingChoice):
    """A request for one image."""

    model: Name
    version: Name = "1"
    labels: Base64Bytes = Field(
        description="base64 of a PNG of class indices (grey or palette), of the model's size"
    )
    crops: tuple[CropBody, ...] = Field((), max_length=MAX_CROPS)
    steps: int | None = Field(None, ge=1, le=200, description="default: the model's")
    seed: int = Field(0, ge=0, lt=2**63)


class SlideInfo(Contract):
    """A slide in the store, ingested or not."""

    slide: Name
    source: str | None = Field(description="key of its main file: `source` of an ingest request")
    files: dict[str, int] = Field(description="key → bytes, of all its files")
    annotation: str | None = Field(description="key of its annotation: `labels` of that request")
    record: SlideRecord | None = Field(description="None until it is ingested")


class SlidePage(Contract):
    """Some of the slides, by name."""

    items: tuple[SlideInfo, ...]
    next: str | None = Field(description="`cursor` of the next page")


class SlideReference(Contract):
    """A slide that lies elsewhere in the store: the record at `slides/<slide>/reference.json`."""

    slide: Name
    source: str = Field(max_length=1024, description="key of its main file")


class UploadBody(Contract):
    """A large file that comes in parts."""

    file: str = Field(min_length=1, max_length=256, description="name, below the slide's source")
    bytes: int = Field(ge=1, le=2**40)


class UploadPart(Contract):
    """One part of an upload."""

    number: int
    bytes: int
    url: str = Field(description="absolute: PUT there, without a token; else relative, with token")


class Upload(Contract):
    """An upload under way: the record at `uploads/<upload>.json`."""

    upload: Name
    slide: Name
    file: str
    bytes: int
    part_bytes: int = Field(description="of every part but the last")
    parts: int


class UploadStatus(Contract):
    """What of an upload has arrived, and where the next parts go."""

    upload: Upload
    arrived: tuple[int, ...]
    missing: tuple[UploadPart, ...] = Field(description="the next parts, at most 100")


class Names(Contract):
    """Some of the names of a kind of thing, sorted."""

    items: tuple[str, ...]
    next: str | None = Field(description="`cursor` of the next page")


class RegionRow(Contract):
    """One region of a set."""

    key: str
    slide: str
    x: int = Field(description="level-0 pixels")
    y: int
    fractions: tuple[float, ...] = Field(description="share per class, background first")


class RegionPage(Contract):
    """Some of a slide's regions, by key."""

    items: tuple[RegionRow, ...]
    next: str | None = Field(description="`cursor` of the next page")


class AtlasType(Contract):
    """A tissue type that clustering found, and what a person says of it."""

    label: int = Field(description="cluster + 1")
    type: TissueType
    patches: int
    mean_distance: float = Field(description="mean cosine distance to the centroid")


class Atlas(Contract):
    """The tissue types of a clustering."""

    run: str
    cohort: str
    encoder: str
    types: tuple[AtlasType, ...]


class TypePlace(Contract):
    """A slide that a tissue type lies on."""

    slide: str
    patches: int = Field(description="of the type on this slide")
    x: int = Field(description="corner of the patch nearest to the type's centre, level-0 pixels")
    y: int
    nearest: tuple[tuple[int, int], ...] = Field(
        description="corners of this patch and of those that follow, nearest first"
    )


class TypePlaces(Contract):
    """Some of the slides that a tissue type lies on, by name."""

    items: tuple[TypePlace, ...]
    next: str | None = Field(description="`cursor` of the next page")


class TrainingRun(Contract):
    """A training run: its job, its curves, its sample sheets."""

    run: str
    job: str | None
    state: State | None
    curves: dict[str, tuple[dict[str, float], ...]] = Field(
        description="vae, decoder, denoiser → rows of metrics"
    )
    samples: tuple[str, ...] = Field(description="names of the sample sheets, in order")


class ReportInfo(Contract):
    """An evaluation of a dataset, in short; the report itself says what was measured on what."""

    report: str
    dataset: str
    model: str = Field(description="<name>/<version>")
    images: int
    held_out: bool = Field(description="whether the real test slides were kept from the model")
    frechet: dict[str, float] = Field(description="encoder → Fréchet distance to real test images")
    floor: dict[str, float] = Field(description="encoder → the same of real images to others")
    mean_iou: dict[str, float] = Field(
        description="what a segmenter was trained on → mean IoU on real test images"
    )
    faithfulness: float | None = Field(
        description="mean IoU of the requested maps, as a segmenter of real images sees them"
    )


class ReportPage(Contract):
    """Some of the reports, by name."""

    items: tuple[ReportInfo, ...]
    next: str | None = Field(description="`cursor` of the next page")


class ModelInfo(Contract):
    """A model version."""

    record: ModelRecord
    served: bool = Field(description="whether it is what Triton serves of the model")


class ModelPage(Contract):
    """Some of the models' versions."""

    items: tuple[ModelInfo, ...]
    next: str | None = Field(description="`cursor` of the next page")


class DeployBody(Contract):
    """How a version is served."""

    engine: Engine = "pytorch"
    device: Literal["cpu", "cuda"] = "cpu"
