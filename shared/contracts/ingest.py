"""Ingest: slides and their annotations → records, label maps, patch index, regions.

slides/<slide>/source/<files>   the slide itself, unless it is referred to in place
slides/<slide>/slide.json       SlideRecord
slides/<slide>/tissue.png       tissue mask, 255 = tissue
slides/<slide>/thumbnail.png
slides/<slide>/labels.tif       label map (annotated slides only)
patches/<cohort>/<slide>.parquet  patch index
cohorts/<cohort>.json           CohortRecord
regions/<cohort>/…              region set of the annotated slides
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from shared.contracts.base import Classes, Contract, Name, Request, Split, SplitFractions
from shared.contracts.regions import RegionRule

LabelFormat = Literal["asap", "geojson", "panda-radboud", "panda-karolinska", "indexed"]


class SlideSource(Contract):
    """Where a slide and its annotation lie: store keys, or absolute paths left in place."""

    slide: Name
    source: str = Field(description="key of the slide's main file in the store, or absolute path")
    labels: str | None = Field(None, description="key or absolute path of the annotation")
    label_format: LabelFormat | None = Field(None, description="guessed from the file if not given")
    mpp: float | None = Field(None, gt=0, description="for slides that state no resolution")
    split: Split | None = None


class PatchGrid(Contract):
    """The grid of patches that are embedded and clustered."""

    size: int = Field(256, ge=16, le=2048, description="side of a patch in pixels at `mpp`")
    mpp: float = Field(0.5, gt=0)
    stride: int = Field(256, ge=4, description="pixels at `mpp` between neighbouring patches")
    min_tissue: float = Field(0.5, ge=0, le=1, description="least tissue share of a patch")


class IngestRequest(Request):
    """Ingest slides as a cohort."""

    stage: ClassVar[str] = "ingest"

    cohort: Name
    slides: tuple[SlideSource, ...] = Field(min_length=1)
    classes: Classes | None = Field(None, description="needed where any slide has labels")
    label_names: dict[str, str] = Field(
        default_factory=dict, description="annotation name or pixel value → class name"
    )
    patches: PatchGrid = PatchGrid()
    regions: RegionRule = RegionRule()
    split: SplitFractions = SplitFractions()
    allow_other_stains: bool = Field(False, description="take slides that do not look like H&E")

    @model_validator(mode="after")
    def _consistent(self) -> IngestRequest:
        names = [item.slide for item in self.slides]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"slide names must differ; given more than once: {sorted(doubled)}")
        if self.classes is None and any(item.labels for item in self.slides):
            raise ValueError("slides with labels need `classes`")
        return self


class SlideRecord(Contract):
    """The record at `slides/<slide>/slide.json`."""

    slide: Name
    source: str
    sha256: str
    width: int = Field(description="level-0 pixels")
    height: int
    mpp: float = Field(description="µm per level-0 pixel, x")
    mpp_y: float = Field(description="µm per level-0 pixel, y")
    vendor: str
    levels: int
    objective: float | None
    tissue_fraction: float
    stain: Literal["h&e", "other", "unknown"]
    labels: str | None = Field(description="key of the label map, if annotated")
    labels_mpp: float | None


class CohortRecord(Contract):
    """The record at `cohorts/<cohort>.json`."""

    cohort: Name
    classes: Classes | None
    patches: PatchGrid
    splits: dict[str, Split] = Field(description="slide → split; slides that failed are not in it")
    sha256: dict[str, str] = Field(description="slide → SHA-256 of its source")

    def of_split(self, *splits: Split) -> list[str]:
        """Names of the slides in the given splits, sorted."""
        return sorted(slide for slide, split in self.splits.items() if split in splits)


def cohort_key(cohort: str) -> str:
    """Key of a cohort's record."""
    return f"cohorts/{cohort}.json"


def slide_key(slide: str, name: str = "slide.json") -> str:
    """Key of one of a slide's objects."""
    return f"slides/{slide}/{name}"


def patches_key(cohort: str, slide: str) -> str:
    """Key of a slide's patch index."""
    return f"patches/{cohort}/{slide}.parquet"
