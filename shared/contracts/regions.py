"""Training regions: the rule that chooses windows, and the set that keeps them.

Services that read slides (ingest, cluster) write region sets for the services that
need only their pixels (train, synthesize, evaluate):

    regions/<set>/set.json          RegionSet
    regions/<set>/index/regions.parquet   all regions (shared.imaging.region_index.COLUMNS)
    regions/<set>/<slide>.parquet   one row per region (shared.imaging.region_sets.COLUMNS)
    regions/<set>/<slide>.tar       WebDataset: <key>.png (RGB), <key>.mask.png (labels)
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator

from shared.contracts.base import Classes, Contract, Name, Seed, Split, SplitFractions


class RegionRule(Contract):
    """The paper's heterogeneity rule, which chooses the windows of a slide that become regions.

    A window is kept if at least `min_classes` classes each hold between `low` and
    `high` of its tissue area (HeteroTissue-Diffuse, heterogeneous patch sampling).
    """

    size: int = Field(256, ge=32, le=4096, description="side of a region in pixels at `mpp`")
    mpp: float = Field(0.5, gt=0)
    low: float = Field(0.2, ge=0, le=1, description="smallest share of a class that counts")
    high: float = Field(0.8, ge=0, le=1, description="largest share of a class that counts")
    min_classes: int = Field(2, ge=1, description="classes that must be within the bounds")
    count_background: bool = Field(
        False, description="count background as a class, and take shares of the whole window"
    )
    min_tissue: float = Field(0.25, ge=0, le=1, description="smallest labelled share of a window")
    overlap: float = Field(0.5, ge=0, lt=1, description="overlap of neighbours / side of a window")
    max_per_slide: int = Field(
        400, ge=1, description="largest number of regions per slide; the most diverse stay"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _ordered(self) -> RegionRule:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self

    @property
    def stride(self) -> int:
        """Pixels at `mpp` between the corners of neighbouring windows."""
        return max(1, round(self.size * (1 - self.overlap)))

    def why_none(self) -> str:
        """Say what a window must show to be kept, and what to change where none does."""
        area = "pixels" if self.count_background else "labelled pixels"
        return (
            f"no window of {self.size} px at {self.mpp:g} µm/px ({self.size * self.mpp:g} µm wide) "
            f"has at least {self.min_classes} class{'es' if self.min_classes > 1 else ''} that "
            f"each hold {self.low * 100:g} to {self.high * 100:g} % of its {area}, of which there "
            f"must be {self.min_tissue * 100:g} % or more. Take larger windows (--region-size or "
            "--region-mpp), widen the bounds (--set regions.low=0.1 --set regions.high=0.9), or "
            "allow windows of one class (--set regions.min_classes=1 --set regions.high=1): see "
            "'Training regions' in docs/slides.md"
        )


class RegionSetSlide(Contract):
    """The regions of one slide in a region set."""

    slide: Name
    split: Split
    regions: int = Field(ge=0, description="number of regions")
    sha256: str = Field("", description="SHA-256 of the WebDataset shard; empty without regions")
    patient: str | None = Field(None, description="patient of the slide, if known")
    class_regions: tuple[int, ...] = Field(
        (), description="number of regions that show each class, background first"
    )
    synthetic: bool = Field(
        False, description="whether the slide, or a tile of it, says that a model made it"
    )


def class_count(slides: Iterable[RegionSetSlide], index: int) -> int:
    """Return how many regions of the slides show a class; older sets do not count them."""
    return sum(part.class_regions[index] for part in slides if len(part.class_regions) > index)


class SourceSlide(Contract):
    """A slide that something was made from."""

    slide: str
    sha256: str | None = Field(None, description="of its source; None: of tiles")
    patient: str | None = None


class SourceSlides(Contract):
    """The slides of the regions that a run was trained on, or that a dataset was made from.

    Other slides may have their names later. The record stays in the store, because it names slides
    and patients.
    """

    slides: tuple[SourceSlide, ...]


class RegionSet(Contract):
    """A region set: the record at `regions/<set>/set.json`."""

    name: Name
    cohort: Name
    labels: str = Field(description="source: 'annotation', or 'clusters/<run>'")
    classes: Classes
    rule: RegionRule
    slides: tuple[RegionSetSlide, ...]
    split: SplitFractions | None = Field(
        None, description="shares that ingest assigned the splits by"
    )
    tiles: str | None = Field(None, description="key of the table of tiles that it was cut from")
    cautions: tuple[str, ...] = Field(
        (), description="reasons why figures of the set may be wrong or too good"
    )
    left_out: tuple[SourceSlide, ...] = Field(
        (), description="slides of the cohort that have no part in the set; cautions may name them"
    )

    def of_split(self, *splits: Split) -> list[RegionSetSlide]:
        """Return the slides of the given splits that have regions."""
        return [item for item in self.slides if item.split in splits and item.regions]


def region_set_key(name: str) -> str:
    """Return the key of a region set's record."""
    return f"regions/{name}/set.json"


def region_table_key(name: str, slide: str) -> str:
    """Return the key of the table of a slide's regions."""
    return f"regions/{name}/{slide}.parquet"


def region_tar_key(name: str, slide: str) -> str:
    """Return the key of the WebDataset shard with a slide's region images and label maps."""
    return f"regions/{name}/{slide}.tar"


def region_index_key(name: str) -> str:
    """Return the key of the file that lists all regions of a set."""
    return f"regions/{name}/index/regions.parquet"
