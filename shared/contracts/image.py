"""Image: a label map and crops → one image, a new one or an edited one.

images/inputs/<sha256>.png   uploaded label maps, crops, and images to edit
images/<image>.png           the image
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

from pydantic import Field, model_validator

from shared.contracts.base import Contract, FileName, Name, Request
from shared.contracts.models import ModelChoice
from shared.contracts.regions import region_set_key
from shared.contracts.synthesize import SamplingChoice

INPUTS = "images/inputs/"


class GivenCrop(Contract):
    """A crop of one class: an uploaded image, or a region to cut it from."""

    label: int = Field(ge=0, le=255, description="index of the class")
    pixels: FileName | None = Field(None, description="key of a square PNG")
    regions: Name | None = Field(None, description="region set to cut from")
    region: Name | None = Field(None, description="key of the region in that set")

    @model_validator(mode="after")
    def _one_source(self) -> GivenCrop:
        if (self.pixels is None) == (self.regions is None or self.region is None):
            raise ValueError("a crop needs either pixels, or regions and region")
        return self


MAX_EDIT_SIDE = 2048
"""Greatest side of an image that is edited, pixels: it is encoded in one piece."""

BORDER, MAX_BORDER = 8, 64
"""Pixels over which new tissue fades into the old: the default, and the greatest."""

STRENGTH = 0.75
"""Time from which an image is drawn again. Less keeps more of the image than of its labels, because
the autoencoder loses detail and few steps bring none back (`benchmarks/edits.py`)."""

RESTAINING = 0.3
"""Strength of matching the staining of crops in re-staining: more brings the densities of classes
nearer to those of the crops, and tells the classes apart less (`benchmarks/edits.py`)."""


class Edit(Contract):
    """A change of a given image: new tissue in an area, or the whole drawn again."""

    image: FileName = Field(description="key of the image, an RGB PNG")
    area: FileName | None = Field(
        None, description="key of a PNG that is not 0 where to paint; None: draw the whole again"
    )
    border: int = Field(
        BORDER, ge=0, le=MAX_BORDER, description="pixels over which new tissue fades into the old"
    )
    restain: bool = Field(
        False, description="keep the cells of the image, and change its staining alone"
    )
    strength: float = Field(
        STRENGTH,
        ge=0,
        le=1,
        description="time from which it is denoised again; 0: little changes",
    )

    @model_validator(mode="after")
    def _restains_the_whole(self) -> Edit:
        if self.restain and self.area is not None:
            raise ValueError("restain takes no area: it stains the whole image")
        return self


class ImageRequest(ModelChoice, SamplingChoice, Request):
    """Make one image from a label map and crops, or edit one."""

    stage: ClassVar[str] = "image"

    image: Name = Field(description="name of the image to make")
    labels: FileName = Field(
        description="key of the label map: a PNG of class indices, of the model's size, or of that "
        "of the edited image"
    )
    crops: tuple[GivenCrop, ...] = Field((), max_length=255)
    edit: Edit | None = Field(None, description="None: a new image")
    seed: int = Field(0, ge=-(2**63), lt=2**63)

    def inputs(self) -> list[str]:
        named = sorted({crop.regions for crop in self.crops if crop.regions})
        return [self.model_ref.key, *map(region_set_key, named)]


def image_key(image: str) -> str:
    """Return the key of the image."""
    return f"images/{image}.png"


def input_key(data: bytes) -> str:
    """Return the key of an uploaded PNG: the same content has the same key."""
    return f"{INPUTS}{hashlib.sha256(data).hexdigest()}.png"
