"""Ingest: slides or tiles with their annotations → records, label maps, patches, regions.

slides/<folder>/source/<files>  the slide itself, unless it stays in place
slides/<folder>/slide.json      SlideRecord
slides/<folder>/tissue.png      tissue mask, 255 = tissue
slides/<folder>/thumbnail.png
slides/<folder>/labels/<cohort>.tif  label map (annotated slides only)
tiles/<cohort>/<hash>.parquet   tiles from other tools, and their masks (TILE_COLUMNS)
patches/<cohort>/<slide>.parquet  patch index
cohorts/<cohort>.json           CohortRecord
regions/<cohort>/…              region set of the annotated slides and of the tiles

A folder holds one slide with its resolution; cohorts that have the same slide share it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shared.contracts.annotations import LabelFormat
from shared.contracts.base import (
    Classes,
    Contract,
    FileName,
    Name,
    Request,
    Split,
    SplitFractions,
    spelling,
)
from shared.contracts.regions import RegionRule
from shared.errors import all_quoted, quoted
from shared.patients import Origin, folded, origin_of

MAX_DAMAGED = 0.05
"""Share of a slide, its regions or patches, that may be unreadable unless a request says else."""
GIVEN_MPP = (0.01, 100.0)
"""Least and greatest µm per pixel that a user may give; what is beyond is in another unit."""

LabelsOrigin = Literal["auto", "slide", "bounds"]
"""Where coordinates of labels begin: at the slide's corner, or at that of its scanned area
(openslide.bounds-x, -y), to which QuPath crops; auto: as the labels lie on the tissue."""

LabelsUnit = Literal["auto", "px", "um"]
"""Unit of the coordinates of labels: level-0 pixels or µm; auto: pixels, if nothing else fits far
better."""


class SlideSource(Contract):
    """The files of a slide and its annotation: store keys, or absolute paths.

    Files given by path are not copied; later jobs read them where they are.
    """

    slide: Name = Field(description="the cohort's name of the slide")
    stored_as: Name | None = Field(
        None,
        description="folder of the slide below slides/, one for each content; default: its name",
    )
    source: FileName = Field(description="key of the slide's main file, or absolute path")
    parts: tuple[str, ...] = Field(
        (), description="paths of the slide's other files, relative to the folder of the main file"
    )
    sha256: str | None = Field(None, description="SHA-256 that the slide's content must have")
    labels: FileName | None = Field(None, description="key or absolute path of the annotation")
    labels_sha256: str | None = Field(None, description="SHA-256 of the annotation's content")
    label_format: LabelFormat | None = Field(
        None, description="default: guessed by the suffix and the content"
    )
    labels_origin: LabelsOrigin | None = Field(None, description="default: that of the request")
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
        """Patient and site: those that are given, or else those that the names state."""
        return origin_of(self.slide, self.patient, self.site)

    @property
    def unhashed(self) -> list[str]:
        """Files whose content is not stated: of the slide, of its annotation, or of both."""
        files = [] if self.labels is None or self.labels_sha256 is not None else [self.labels]
        if self.sha256 is None:
            place = PurePosixPath(self.source).parent
            files += [self.source, *(str(place / part) for part in self.parts)]
        return files

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
    spelling: dict[str, str] = {}
    for slide, (patient, split) in slides.items():
        if patient is not None and split is not None:
            same = spelling.setdefault(folded(patient), patient)  # 'P1' and 'p1' are one
            splits.setdefault(same, {}).setdefault(split, slide)
    for patient, parts in splits.items():
        if len(parts) > 1:
            listed = ", ".join(f"{slide} in {split}" for split, slide in sorted(parts.items()))
            raise ValueError(
                f"the given splits divide patient {quoted(patient)} ({listed}), so that figures "
                "would be too good: give all slides of a patient one split, or allow leakage "
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
    tiles: FileName | None = Field(None, description="key of a table of tiles and their masks")
    classes: Classes | None = Field(
        None, description="classes of the labels; needed if there are any"
    )
    label_names: dict[str, str] = Field(
        default_factory=dict,
        description="annotation name, pixel value or colour (#rrggbb) → class name",
    )
    label_order: tuple[str, ...] = Field(
        (),
        description="class names; labels of a later class cover those of an earlier one. Default: "
        "smaller outlines cover larger ones",
    )
    labels_origin: LabelsOrigin = Field(
        "auto", description="corner from which coordinates of labels are counted"
    )
    labels_unit: LabelsUnit = Field(
        "auto",
        description="unit of coordinates of labels; auto: level-0 pixels, and a slide whose labels "
        "fit its tissue far better as µm, as y and x, or at a smaller level is refused",
    )
    labels_on_tissue: float = Field(
        0.1,
        ge=0,
        le=1,
        description="smallest share of a slide's labelled area that lies on tissue; a slide with "
        "less is refused, as its labels are misplaced",
    )
    patches: PatchGrid = PatchGrid()
    regions: RegionRule = RegionRule()
    split: SplitFractions = SplitFractions()
    allow_other_stains: bool = Field(False, description="accept slides that do not look like H&E")
    max_damaged: float = Field(
        MAX_DAMAGED, ge=0, le=1, description="largest share of a slide that may be unreadable"
    )
    allow_leakage: bool = Field(
        False,
        description="accept given splits that divide the slides of a patient; every report says so",
    )

    @field_validator("label_names", mode="before")
    @classmethod
    def _numbers_as_text(cls, names: Any) -> Any:
        """Take pixel values that YAML reads as numbers: {1: tumor} is {"1": tumor}."""
        if not isinstance(names, dict):
            return names
        texts: dict[Any, Any] = {}
        for key, name in names.items():
            text = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
            if not isinstance(text, str):
                raise ValueError(
                    f"the key {key!r} is neither text nor a whole number: put it in quotes"
                )
            if text in texts:
                raise ValueError(f"{quoted(text)} is given twice, as a number and as text")
            texts[text] = name
        return texts

    @model_validator(mode="after")
    def _consistent(self) -> IngestRequest:
        if not self.slides and self.tiles is None:
            raise ValueError("give slides or tiles")
        count = Counter(item.slide for item in self.slides)
        if doubled := [name for name, times in count.items() if times > 1]:
            raise ValueError(
                f"slide names must differ; given more than once: {all_quoted(sorted(doubled))}"
            )
        if self.split.by == "site" and (
            lost := [i.slide for i in self.slides if not i.origin.site]
        ):
            raise ValueError(
                "a split by site needs the site of every slide; it is not known of "
                f"{all_quoted(lost[:5])}: give a table with a column 'site'"
            )
        if not self.allow_leakage:
            given = [item for item in self.slides if item.split]
            check_divided({item.slide: (item.origin.patient, item.split) for item in given})
        if self.classes is None and (self.tiles or any(item.labels for item in self.slides)):
            raise ValueError("labels need `classes`")
        if self.classes is not None:
            self._check_names(self.classes)
        return self

    def _check_names(self, classes: Classes) -> None:
        if starred := [name for name in classes.names if name.endswith("*")]:
            raise ValueError(
                f"{all_quoted(starred)} can be no classes: annotations whose class ends in * are "
                "left out (QuPath's Ignore*, Region*). Name them by label_names (--rename)"
            )
        meant: dict[str, str] = {}
        for key, name in self.label_names.items():
            if spelling(meant.setdefault(spelling(key), name)) != spelling(name):
                raise ValueError(
                    f"label_names maps {quoted(key)}, in this or another spelling, to two classes: "
                    f"{quoted(meant[spelling(key)])} and {quoted(name)}"
                )
        known = [spelling(name) for name in classes.names]
        for key, name in self.label_names.items():
            if spelling(name) not in known:
                raise ValueError(
                    f"label_names maps {quoted(key)} to {quoted(name)}, which is not among the "
                    f"classes {all_quoted(classes.names)}"
                )
        if wrong := [name for name in self.label_order if spelling(name) not in known]:
            raise ValueError(
                f"label_order names {all_quoted(wrong)}, not among the classes "
                f"{all_quoted(classes.names)}"
            )

    def inputs(self) -> list[str]:
        return [self.tiles] if self.tiles else []

    def files(self) -> list[str]:
        return sorted({name for item in self.slides for name in item.unhashed})

    def products(self) -> list[str]:
        cohort = [f"cohorts/{self.cohort}"]
        return cohort if self.classes is None else [*cohort, f"regions/{self.cohort}"]

    def revises(self, earlier: Request) -> bool:
        """Say whether the cohort only grows: with the same options, no slide is lost or changed.

        Whether tiles are lost is not known here; who makes their table has to see to it.
        Annotations, patients and splits may change.
        """
        if not isinstance(earlier, IngestRequest):
            return False
        now = {item.slide: _pixels(item) for item in self.slides}
        before = {item.slide: _pixels(item) for item in earlier.slides}
        options = {"slides": (), "tiles": None}
        same = self.model_copy(update=options) == earlier.model_copy(update=options)
        kinds = (self.tiles is None) == (earlier.tiles is None)
        return same and kinds and before.items() <= now.items()


def _pixels(source: SlideSource) -> tuple[str, float | None]:
    """Return what a slide's pixels are known by, and the resolution that is given for them."""
    return source.sha256 or source.source, source.mpp


class SlideRecord(Contract):
    """An ingested slide: the record at `slides/<slide>/slide.json`."""

    slide: Name = Field(description="folder of the slide below slides/")
    source: str = Field(description="key or absolute path of the main file")
    parts: tuple[str, ...] = Field(
        (), description="paths of the other files, relative to the folder of the main file"
    )
    sha256: str = Field(description="SHA-256 of all files")
    width: int = Field(description="level-0 pixels")
    height: int
    mpp: float = Field(description="µm per level-0 pixel, x")
    mpp_y: float = Field(description="µm per level-0 pixel, y")
    vendor: str
    levels: int = Field(description="number of pyramid levels")
    objective: float | None = Field(description="nominal magnification, if stated")
    tissue_fraction: float
    stain: Literal["h&e", "other", "unknown"]
    synthetic: bool = Field(
        False, description="whether the file says that a model made it, or parts of it"
    )


class SkippedSlide(Contract):
    """A slide that a cohort had before, and that was skipped when the cohort was made again."""

    split: Split
    sha256: str = Field(description="SHA-256 of its source")
    patient: str | None = None


class CohortRecord(Contract):
    """A cohort of slides: the record at `cohorts/<cohort>.json`."""

    cohort: Name
    classes: Classes | None
    patches: PatchGrid
    splits: dict[str, Split] = Field(description="slide → split, without failed slides")
    sha256: dict[str, str] = Field(description="slide → SHA-256 of its source")
    stored_as: dict[str, Name] = Field(
        {}, description="slide → its folder below slides/; default: its name"
    )
    mpp: dict[str, float] = Field({}, description="slide → µm per level-0 pixel, x")
    places: dict[str, str] = Field({}, description="slide → SHA-256 of the corners of its patches")
    counts: dict[str, int] = Field(
        {}, description="slide → number of its patches; older records lack it"
    )
    labels: dict[str, str] = Field(
        {}, description="slide → SHA-256 of its label map; older records lack it"
    )
    patients: dict[str, str] = Field({}, description="slide → patient, where known")
    sites: dict[str, str] = Field({}, description="slide → site, where known")
    split: SplitFractions | None = Field(
        None, description="shares that the splits were assigned by"
    )
    regions: RegionRule | None = Field(
        None, description="rule of the cohort's regions, also where it has none yet"
    )
    cautions: tuple[str, ...] = Field(
        (), description="reasons why figures of the cohort may be wrong or too good"
    )
    skipped: dict[str, SkippedSlide] = Field(
        {}, description="slides that it had before, whose splits are kept"
    )

    @property
    def scale(self) -> tuple[int, float]:
        """Side (pixels) and resolution (µm per pixel) of the cohort's regions.

        In older records they are those of two patches, as `htd ingest` makes them.
        """
        if self.regions is not None:
            return self.regions.size, self.regions.mpp
        return 2 * self.patches.size, self.patches.mpp

    def of_split(self, *splits: Split) -> list[str]:
        """Return the names of the slides in the given splits, sorted."""
        return sorted(slide for slide, split in self.splits.items() if split in splits)

    def patches_of(self, slide: str) -> str:
        """Return a SHA-256 of what a slide's patches are: its content, resolution, and places."""
        parts = (self.sha256[slide], self.mpp.get(slide), self.places.get(slide, ""))
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def folder(self, slide: str) -> str:
        """Return a slide's folder below slides/."""
        return self.stored_as.get(slide, slide)

    def name_of(self, folder: str) -> str | None:
        """Return the cohort's name of the slide in a folder below slides/, or None."""
        return next((slide for slide in self.splits if self.folder(slide) == folder), None)


def cohort_key(cohort: str) -> str:
    """Return the key of a cohort's record."""
    return f"cohorts/{cohort}.json"


def slide_key(folder: str, name: str = "slide.json") -> str:
    """Return the key of an object of a slide."""
    return f"slides/{folder}/{name}"


def label_map_key(folder: str, cohort: str) -> str:
    """Return the key of the label map that a cohort made of a slide's annotation."""
    return slide_key(folder, f"labels/{cohort}.tif")


def patches_key(cohort: str, slide: str) -> str:
    """Return the key of a slide's patch index."""
    return f"patches/{cohort}/{slide}.parquet"
