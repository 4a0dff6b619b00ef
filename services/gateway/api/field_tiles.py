"""Zoom tiles of finished fields and of their label maps (Deep Zoom, for OpenSeadragon)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from services.gateway.api.access import MayRead
from services.gateway.api.etags import IfNoneMatch, drawing, drawn
from services.gateway.api.label_tiles import label_tiles
from services.gateway.api.problems import documented, returning
from services.gateway.api.slide_threads import reads_slide
from services.gateway.api.zoom import Level, TileNumber, zoom_of_field
from shared.contracts.base import Name
from shared.contracts.field import field_key

FieldName = Annotated[Name, Path(description="name of the field")]

FRESH = "private, no-cache"
"""Cache-Control: browsers ask each time, because a field may be replaced; most answers are 304."""

router = APIRouter(prefix="/v1/fields/{field}", tags=["tiles"])


@router.get(
    "/deepzoom.dzi",
    response_class=Response,
    responses=documented(404, 409) | returning("application/xml"),
)
@reads_slide
def describe_field_tiles(field: FieldName, request: Request, caller: MayRead) -> Response:
    """Return the Deep Zoom description of a field's tiles, which OpenSeadragon opens."""
    zoom, _, _ = zoom_of_field(request, caller, field)
    return Response(zoom.tiles.get_dzi("jpeg"), media_type="application/xml")


@router.get(
    "/deepzoom_files/{level}/{column}_{row}.jpeg",
    response_class=Response,
    responses=drawing("image/jpeg") | documented(409),
)
@reads_slide
def get_field_tile(
    field: FieldName,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a zoom tile of a field as JPEG."""
    zoom, _, version = zoom_of_field(request, caller, field)
    tag = f"{version}-{level}-{column}-{row}"
    return drawn(tag, if_none_match, FRESH, "image/jpeg", partial(zoom.tile, level, column, row))


@router.get(
    "/labels/{level}/{column}_{row}.png",
    response_class=Response,
    responses=drawing("image/png") | documented(409),
)
@reads_slide
def get_field_label_tile(
    field: FieldName,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a zoom tile of a field's label map, to show over the field's own tile."""
    zoom, record, version = zoom_of_field(request, caller, field)
    key, digest = field_key(field, "labels.tiff"), record.sha256.get("labels.tiff")
    labels = label_tiles(request, caller.store, key, digest)
    tag = f"{version}-{labels.version}-{level}-{column}-{row}"
    draw = partial(labels.tile, zoom, level, column, row, record.classes)
    return drawn(tag, if_none_match, FRESH, "image/png", draw)
