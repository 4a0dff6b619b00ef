"""Field: a label map of any size, given or sampled, and crops of its classes → one image, a slide.

fields/inputs/<sha256>.tif            uploaded label maps
fields/inputs/<sha256>.png            uploaded crops
fields/<field>/crops/<n>-<label>.png  the crop of each class, of appearance n
fields/<field>/slide.tiff             the image: a pyramid
fields/<field>/labels.tiff            the label map: a pyramid
fields/<field>/regions.geojson        its regions, for QuPath
fields/<field>/field.json             FieldRecord
fields/.work/<field>/…                until the field is finished: a sampled label map, and the
                                      latents and tiles of the strips
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from shared.contracts.base import Classes, Contract, FileName, Name, Request, Seed
from shared.contracts.image import GivenCrop
from shared.contracts.models import ModelChoice, WeightsOrigin
from shared.contracts.regions import region_set_key
from shared.contracts.sampling import Sampling
from shared.contracts.synthesize import SamplingChoice, own_regions

FIELD_INPUTS = "fields/inputs/"
WORK = "fields/.work/"


def _free(name: str) -> str:
    """Refuse the name whose folder holds the uploads of all fields."""
    if f"fields/{name}/" == FIELD_INPUTS:
        raise ValueError(f"{name!r} is the folder of uploaded maps and crops: take another name")
    return name


FieldName = Annotated[Name, AfterValidator(_free)]
"""The name of a new field."""

MAX_SIDE = 1 << 20
"""Greatest side of a field, pixels."""


class SampledMap(Contract):
    """A label map that the model's layout model samples."""

    width: int = Field(ge=1, le=MAX_SIDE, description="pixels; at least the model's size")
    height: int = Field(ge=1, le=MAX_SIDE, description="pixels; at least the model's size")
    proportions: dict[str, float] = Field(
        default_factory=dict,
        description="class name → share of the labelled pixels; the other classes share the rest "
        "as in the training regions of the model",
    )


Place = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]
"""A place in a field: x and y, as shares of its width and height."""

CropPlace = Annotated[
    Place | None,
    Field(
        description="x and y of the place where tissue looks so, as shares of width and height; "
        "between places it changes smoothly. None: everywhere"
    ),
]

MAX_APPEARANCES = 16

Appearances = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_APPEARANCES,
        description="without crops: number of slides that give them, at places all over the field",
    ),
]


def check_places(places: Sequence[Place | None], appearances: int) -> None:
    """Raise `ValueError` if crops at these places do not go together, or with `appearances`."""
    if places and appearances > 1:
        raise ValueError("appearances are chosen where no crops are given: leave out one of both")
    if None in places and any(places):
        raise ValueError("some crops have a place, and others have none: give it to all or none")
    if (count := len(set(places))) > MAX_APPEARANCES:
        raise ValueError(f"crops have {count} places: give at most {MAX_APPEARANCES}")


class PlacedCrop(GivenCrop):
    """A crop of one class; those of one place are an appearance."""

    at: CropPlace = None


class FieldRequest(ModelChoice, SamplingChoice, Request):
    """Make one image of any size from a label map and a crop of each class."""

    stage: ClassVar[str] = "field"
    scratch: ClassVar[tuple[str, ...]] = (WORK,)

    field: FieldName
    labels: FileName | None = Field(
        None,
        description="key of the label map: a label map of a slide, or an uploaded one, with the "
        "model's classes at the model's µm per pixel",
    )
    labels_sha256: str | None = Field(
        None, description="SHA-256 that the label map must have; the key of an upload states it"
    )
    sampled: SampledMap | None = Field(
        None, description="a label map to sample by `seed`, in place of `labels`"
    )
    crops: tuple[PlacedCrop, ...] = Field(
        (),
        max_length=255 * MAX_APPEARANCES,
        description="a crop of each class of the map, at each place; empty: from slides of the "
        "model's regions",
    )
    appearances: Appearances = 1
    seed: Seed = 0
    compression: Literal["jpeg", "deflate"] = Field(
        "jpeg", description="jpeg: of quality 95; deflate: without loss, about six times as large"
    )
    strip: int | None = Field(
        None,
        ge=512,
        multiple_of=512,
        description="height of the strip that a shard makes, pixels; default: by the width",
    )

    @model_validator(mode="after")
    def _one_map(self) -> FieldRequest:
        if (self.labels is None) == (self.sampled is None):
            raise ValueError("a field needs a label map: either labels or sampled")
        return self

    @model_validator(mode="after")
    def _few_appearances(self) -> FieldRequest:
        check_places([crop.at for crop in self.crops], self.appearances)
        return self

    @property
    def map_key(self) -> str:
        """Key of the label map; a sampled one is there while the field is being made."""
        return self.labels if self.labels is not None else work_key(self.field, "sampled.tif")

    @property
    def map_digest(self) -> str | None:
        """SHA-256 of the label map, where the request or the key of an upload states it."""
        uploaded = self.labels is not None and self.labels.startswith(FIELD_INPUTS)
        return PurePosixPath(self.map_key).stem if uploaded else self.labels_sha256

    def inputs(self) -> list[str]:
        named = sorted({crop.regions for crop in self.crops if crop.regions})
        return [self.model_ref.key, *map(region_set_key, named)]

    def files(self) -> list[str]:
        return [] if self.labels is None or self.map_digest is not None else [self.labels]

    def further_inputs(self, records: Mapping[str, bytes]) -> list[str]:
        return [] if self.sampled is None else own_regions(records[self.model_ref.key])

    def products(self) -> list[str]:
        return [f"fields/{self.field}"]


class FieldCrop(Contract):
    """The crop of a class in an appearance, and where it is from."""

    appearance: int = 0
    at: Place | None = Field(None, description="None: everywhere")
    label: int = Field(ge=0, le=255)
    sha256: str = Field(description="of its PNG")
    regions: Name | None = Field(None, description="region set; None: uploaded")
    region: Name | None = None


class FieldRecord(Contract):
    """A finished field: the record at `fields/<field>/field.json`."""

    field: Name
    model: str
    weights: dict[str, str] = Field(description="file → SHA-256 of the model's weights")
    origin: WeightsOrigin | None = None
    width: int
    height: int
    mpp: float
    classes: Classes
    shares: dict[str, float] = Field(description="class name → share of the pixels")
    crops: tuple[FieldCrop, ...]
    sampling: Sampling
    request: FieldRequest
    sha256: dict[str, str] = Field(description="file → SHA-256")
    outline_step: int = Field(
        description="pixels per pixel of the label map that the outlines were traced on"
    )


def field_key(field: str, name: str) -> str:
    """Return the key of an object of a field."""
    return f"fields/{field}/{name}"


def work_key(field: str, name: str) -> str:
    """Return the key of an object that is needed until a field is finished."""
    return f"{WORK}{field}/{name}"
