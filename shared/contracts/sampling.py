"""The settings of sampling: steps, guidance, staining.

This module alone sets their defaults.
"""

from __future__ import annotations

from pydantic import Field

from shared.contracts.base import Contract


class GuidanceScale(Contract):
    """The scales of classifier-free guidance; see `shared.diffusion.guidance`."""

    guidance_map: float = Field(1.75, ge=0, le=20, description="1: no guidance by the map")
    guidance_crops: float = Field(1.75, ge=0, le=20, description="1: no guidance by crops")
    guidance_low: float = Field(
        0.25, ge=0, le=1, description="time t at which guidance ends; noise is at 1, the image at 0"
    )
    guidance_high: float = Field(0.75, ge=0, le=1, description="time t at which guidance begins")


class Sampling(GuidanceScale):
    """The settings of sampling; see `shared.diffusion.pipeline`."""

    steps: int = Field(10, ge=1, le=1000, description="denoising steps per image")
    first_order: bool = Field(
        False, description="take Euler steps only, for which few-step students are trained"
    )
    staining: float = Field(
        0.7, ge=0, le=1, description="strength of matching the staining of regions to their crops"
    )
