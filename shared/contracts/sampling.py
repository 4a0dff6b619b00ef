"""How a model's images are sampled: steps, guidance, staining."""

from __future__ import annotations

from pydantic import Field

from shared.contracts.base import Contract


class GuidanceScale(Contract):
    """How far sampling is drawn to its conditions; see `shared.diffusion.guidance`."""

    guidance_map: float = Field(1.75, ge=0, le=20, description="1: none extra")
    guidance_crops: float = Field(1.75, ge=0, le=20, description="1: none extra")
    guidance_low: float = Field(
        0.25, ge=0, le=1, description="time t, of noise at 1 and image at 0, at which it ends"
    )
    guidance_high: float = Field(0.75, ge=0, le=1, description="time t at which it begins")


class Sampling(GuidanceScale):
    """How a model's images are sampled; see `shared.diffusion.pipeline`."""

    steps: int = Field(10, ge=1, le=1000)
    first_order: bool = Field(False, description="of the solver, for few-step students")
    staining: float = Field(
        0.5, ge=0, le=1, description="how far regions are stained as their crops are"
    )
