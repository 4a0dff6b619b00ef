"""The studio: people paint a label map and choose crops, for a new image or to edit one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from services.gateway.api.access import Caller
from services.gateway.api.models import list_models
from services.gateway.api.paging import MAX_LIMIT
from services.gateway.web.pages import SHOWN_SAMPLING, Maker, render
from shared.contracts.models import ModelRecord
from shared.datasets.field_inputs import MIN_CROP_SIDE

ACTIONS = {"paint": "paint", "restain": "restain", "vary": "draw again"}
"""Action of an edit → its name in the form."""

router = APIRouter(prefix="/studio", include_in_schema=False)


@router.get("")
def studio_page(request: Request, caller: Maker) -> Response:
    """Show the studio; its scripts draw the map and request images from the API."""
    return render(request, "studio.html", caller, models=_models(caller))


@router.get("/edit")
def edit_page(request: Request, caller: Maker) -> Response:
    """Show the page on which a picture, or a window of a slide, is edited."""
    return render(request, "studio_edit.html", caller, models=_models(caller), actions=ACTIONS)


def _models(caller: Caller) -> list[dict[str, Any]]:
    return [choice(item.record) for item in list_models(caller, MAX_LIMIT).items]


def choice(record: ModelRecord) -> dict[str, Any]:
    """Return the facts of a model that scripts need; sides of crops are in the image's pixels."""
    sampling, denoiser = record.recipe.sampling, record.recipe.denoiser
    least = max(MIN_CROP_SIDE, round(denoiser.crop_min * record.size))
    return {
        **record.model_dump(mode="json", include={"model", "version", "size", "mpp", "regions"}),
        "classes": record.classes.model_dump(mode="json")["items"],
        "first": record.classes.first,
        "student": sampling.first_order,
        "layouts": record.recipe.layouts.steps > 0,
        "sampling": sampling.model_dump(include=SHOWN_SAMPLING),
        "crop": {"least": least, "most": max(least, round(denoiser.crop_max * record.size))},
    }
