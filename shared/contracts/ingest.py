"""Ingest: slides or tiles with their annotations → records, label maps, patches, regions.

slides/<slide>/source/<files>   the slide itself, unless it stays in place
slides/<slide>/slide.json       SlideRecord
slides/<slide>/tissue.png       tissue mask, 255 = tissue
slides/<slide>/thumbnail.png
slides/<slide>/labels.tif       label map (annotated slides only)
tiles/<cohort>.parquet          tiles from other tools, and their masks (TILE_COLUMNS)
patches/<cohort>/<slide>.parquet  patch index
cohorts/<cohort>.json           CohortRecord
regions/<cohort>/…              region set of the annotated slides and of the tiles
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Classes, Contract, Name, Request, Split, SplitFractions
from shared.contracts.regions import RegionRule
from shared.patients import Origin, known_origin

TILE_COLUMNS = pa.schema(
    [
        ("slide", pa.string()),  # all its tiles are in one split
        ("patient", pa.string()),  # all its slides are in one split; null: not known
        ("split", pa.string()),  # null: assigned by the request's `split`
        ("image", pa.string()),  # key in the store, or absolute path
        ("image_sha256", pa.string()),
        ("mask", pa.string()),  # class indices, or `label` wherever not 0
        ("mask_sha256", pa.string()),
        ("label", pa.uint8()),  # null: the mask holds class indices
        ("mpp", pa.float64()),
    ]
)


class SlideSource(Contract):
    """The files of a slide and its annotation: store keys, or absolute paths.

    Files given by path are not copied; later jobs read them where they are.
    """

    slide: Name = Field(description="the cohort's name of the slide")
    stored_as: Name | None = Field(
        None,
        description="folder of the slide below slides/, one for each content; default: its name",
    )
    source: str = Field(description="key of the slide's main file in the store, or absolute path")
    sha256: str | None = Field(
        None, description="SHA-256 of the slide's content; the files must still have it"
    )
    labels: str | None = Field(None, description="key or absolute path of the annotation")
    labels_sha256: str | None = Field(None, description="SHA-256 of the annotation's content")
    label_format: LabelFormat | None = Field(None, description="default: guessed by the suffix")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel; it overrides what the slide states"
    )
    patient: str | None = Field(
        None, description="patient of the slide; all slides of a patient are in one split"
    )
    site: str | None = Field(None, description="hospital or scanner that the slide comes from")
    split: Split | None = None

    @property
    def origin(self) -> Origin:
        """Patient and site: those that are given, or else those that the name states."""
        known = known_origin(self.slide) or Origin(None, None)
        return Origin(self.patient or known.patient, self.site or known.site)

    @property
    def folder(self) -> str:
        """Folder of the slide below slides/."""
        return self.stored_as or self.slide


def check_divided(slides: Mapping[str, tuple[str | None, Split | None]]) -> None:
    """Check that no given split divides the slides of a patient.

    Args:
        slides: slide → patient and given split, where known.

    Raises:
        ValueError: slides of one patient are in two splits.
    """
    splits: dict[str, dict[Split, str]] = {}
    for slide, (patient, split) in slides.items():
        if patient is not None and split is not None:
            splits.setdefault(patient, {}).setdefault(split, slide)
    for patient, parts in splits.items():
        if len(parts) > 1:
            listed = ", ".join(f"{slide} in {split}" for split, slide in sorted(parts.items()))
            raise ValueError(
                f"the given splits divide patient {patient!r} ({listed}), so that figures would be "
                "too good: give all slides of a patient one split, or allow leakage "
                "(--allow-leakage), which every report then states"
            )


class PatchGrid(Contract):
    """The grid of patches that are embedded and clustered."""

    size: int = Field(256, ge=16, le=2048, description="side of a patch in pixels at `mpp`")
    mpp: float = Field(0.5, gt=0, description="µm per pixel")
    stride: int = Field(256, ge=4, description="pixels at `mpp` between neighbouring patches")
    min_tissue: float = Field(
        0.5, ge=0, le=1, description="smallest tissue share of a patch that is kept"
    )


class IngestRequest(Request):
    """Ingest slides, or tiles from other tools, as a cohort."""

    stage: ClassVar[str] = "ingest"

    cohort: Name
    slides: tuple[SlideSource, ...] = ()
    tiles: str | None = Field(None, description="key of a table of tiles and their masks")
    classes: Classes | None = Field(
        None, description="classes of the labels; needed if there are any"
    )
    label_names: dict[str, str] = Field(
        default_factory=dict, description="annotation name or pixel value → class name"
    )
    patches: PatchGrid = PatchGrid()
    regions: RegionRule = RegionRule()
    split: SplitFractions = SplitFractions()
    allow_other_stains: bool = Field(False, description="accept slides that do not look like H&E")
    allow_leakage: bool = Field(
        False,
        description="accept given splits that divide the slides of a patient; every report says so",
    )

    @model_validator(mode="after")
    def _consistent(self) -> IngestRequest:
        if not self.slides and self.tiles is None:
            raise ValueError("give slides or tiles")
        count = Counter(item.slide for item in self.slides)
        if doubled := [name for name, times in count.items() if times > 1]:
            raise ValueError(f"slide names must differ; given more than once: {sorted(doubled)}")
        if self.split.by == "site" and (
            lost := [i.slide for i in self.slides if not i.origin.site]
        ):
            raise ValueError(
                f"a split by site needs the site of every slide; it is not known of {lost[:5]}: "
                "give a table with a column 'site'"
            )
        if not self.allow_leakage:
            given = [item for item in self.slides if item.split]
            check_divided({item.slide: (item.origin.patient, item.split) for item in given})
        if self.classes is None and (self.tiles or any(item.labels for item in self.slides)):
            raise ValueError("labels need `classes`")
        return self

    def inputs(self) -> list[str]:
        return [self.tiles] if self.tiles else []


class SlideRecord(Contract):
    """An ingested slide: the record at `slides/<slide>/slide.json`."""

    slide: Name
    source: str = Field(description="key or absolute path of the main file")
    sha256: str
    width: int = Field(description="level-0 pixels")
    height: int
    mpp: float = Field(description="µm per level-0 pixel, x")
    mpp_y: float = Field(description="µm per level-0 pixel, y")
    vendor: str
    levels: int = Field(description="number of pyramid levels")
    objective: float | None = Field(description="nominal magnification, if stated")
    tissue_fraction: float
    stain: Literal["h&e", "other", "unknown"]
    labels: str | None = Field(description="key of the label map, if annotated")
    labels_mpp: float | None


class CohortRecord(Contract):
    """A cohort of slides: the record at `cohorts/<cohort>.json`."""

    cohort: Name
    classes: Classes | None
    patches: PatchGrid
    splits: dict[str, Split] = Field(description="slide → split, without failed slides")
    sha256: dict[str, str] = Field(description="slide → SHA-256 of its source")
    patients: dict[str, str] = Field(
        default_factory=dict, description="slide → patient, where known"
    )
    sites: dict[str, str] = Field(default_factory=dict, description="slide → site, where known")
    split: SplitFractions | None = Field(
        None, description="shares that the splits were assigned by"
    )
    cautions: tuple[str, ...] = Field(
        (), description="reasons why figures of the cohort's test slides may be too good"
    )

    def of_split(self, *splits: Split) -> list[str]:
        """Return the names of the slides in the given splits, sorted."""
        return sorted(slide for slide, split in self.splits.items() if split in splits)


def cohort_key(cohort: str) -> str:
    """Return the key of a cohort's record."""
    return f"cohorts/{cohort}.json"


def tiles_key(cohort: str) -> str:
    """Return the key of a cohort's table of tiles."""
    return f"tiles/{cohort}.parquet"


def slide_key(slide: str, name: str = "slide.json") -> str:
    """Return the key of an object of a slide."""
    return f"slides/{slide}/{name}"


def patches_key(cohort: str, slide: str) -> str:
    """Return the key of a slide's patch index."""
    return f"patches/{cohort}/{slide}.parquet"
