"""Pages of fields: the list, the form for a new field, and one field in the viewer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.access import Caller
from services.gateway.api.fields import find_field, list_fields
from services.gateway.api.models import list_models
from services.gateway.api.paging import MAX_LIMIT, Cursor
from services.gateway.api.problems import absent
from services.gateway.api.slide_lookup import label_maps
from services.gateway.api.slides import list_slides
from services.gateway.web.pages import Maker, PageRoute, Visitor, render
from services.gateway.web.studio import choice
from shared.contracts.base import Name
from shared.contracts.field_bodies import FieldInfo
from shared.contracts.jobs import ENDED
from shared.storage import ReadOnceStore

THUMBNAIL_LEVEL = 7
"""Level of the zoom tile that the list shows: it has at most 128 pixels a side."""

router = APIRouter(prefix="/fields", include_in_schema=False, route_class=PageRoute)


@router.get("")
def fields_page(request: Request, caller: Visitor, cursor: Cursor = None) -> Response:
    """Show the list of fields."""
    fields = list_fields(caller, 50, cursor)
    return render(
        request,
        "fields.html",
        caller,
        fields=fields,
        levels={item.field: _level(item) for item in fields.items},
        busy=any(item.status and item.status.state not in ENDED for item in fields.items),
    )


@router.get("/new")
def new_field_page(request: Request, caller: Maker) -> Response:
    """Show the form for a new field; a script sends it to the API."""
    models = [choice(item.record) for item in list_models(caller, MAX_LIMIT).items]
    return render(request, "field_new.html", caller, models=models, maps=_label_maps(caller))


@router.get("/{field}")
def field_page(request: Request, caller: Visitor, field: Annotated[Name, Path()]) -> Response:
    """Show a field's progress, and once it is finished the field with its label map."""
    info = find_field(caller, field)
    if info is None:
        raise absent("field", field, "/fields lists them")
    return render(request, "field.html", caller, info=info)


def _level(info: FieldInfo) -> int:
    """Return the level of the zoom tile that shows the whole field."""
    if info.record is None:
        return 0
    return min(THUMBNAIL_LEVEL, (max(info.record.width, info.record.height) - 1).bit_length())


def _label_maps(caller: Caller) -> list[dict[str, Any]]:
    """List the label maps of slides: the slide, and the cohort that has it."""
    store = ReadOnceStore(caller.store)
    return [
        {"slide": info.slide, "cohort": cohort}
        for info in list_slides(caller, MAX_LIMIT).items
        for cohort in label_maps(store, info)
    ]
