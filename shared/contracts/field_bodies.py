"""Bodies and answers of /v1/fields."""

from __future__ import annotations

from typing import Literal

from pydantic import Base64Bytes, Field, model_validator

from shared.contracts.base import Contract, Name
from shared.contracts.field import (
    Appearances,
    CropPlace,
    FieldName,
    FieldRecord,
    SampledMap,
    check_places,
)
from shared.contracts.gateway import MAX_CROPS, CropBody
from shared.contracts.jobs import JobStatus
from shared.contracts.models import ModelChoice
from shared.contracts.synthesize import SamplingChoice


class PlacedCropBody(CropBody):
    """A crop of one class; those of one place are an appearance."""

    at: CropPlace = None


class FieldBody(ModelChoice, SamplingChoice):
    """A request for a field: one image of any size."""

    field: FieldName
    labels: Base64Bytes | None = Field(
        None,
        description="base64 of a PNG of class indices (grey or palette), at the model's µm/px; at "
        "least of the model's size",
    )
    slide: Name | None = Field(
        None, description="slide whose label map is taken, in place of `labels`"
    )
    cohort: Name | None = Field(None, description="cohort that made the slide's label map")
    sampled: SampledMap | None = Field(
        None, description="label map to sample by `seed`, in place of `labels`"
    )
    crops: tuple[PlacedCropBody, ...] = Field(
        (), max_length=MAX_CROPS, description="empty: from slides of the model's regions"
    )
    appearances: Appearances = 1
    compression: Literal["jpeg", "deflate"] = "jpeg"
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _one_map(self) -> FieldBody:
        of_slide = {self.slide is not None, self.cohort is not None}
        given = [self.labels is not None, self.sampled is not None, True in of_slide]
        if sum(given) != 1 or len(of_slide) != 1:
            raise ValueError("a field needs one label map: labels, slide and cohort, or sampled")
        return self

    @model_validator(mode="after")
    def _few_appearances(self) -> FieldBody:
        check_places([crop.at for crop in self.crops], self.appearances)
        return self


class FieldInfo(Contract):
    """A field in the store, finished or not."""

    field: Name
    status: JobStatus | None = Field(description="of its job; None: the job is there no more")
    record: FieldRecord | None = Field(description="None until it is finished")


class FieldPage(Contract):
    """A page of fields, sorted by name."""

    items: tuple[FieldInfo, ...]
    next: str | None = Field(description="`cursor` of the next page; None on the last")
