"""Zoom tiles of slides and of their label maps (Deep Zoom, for OpenSeadragon), and crops."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from services.gateway.api.access import MayRead
from services.gateway.api.etags import IfNoneMatch, drawing, drawn
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.label_tiles import label_tiles
from services.gateway.api.problems import documented, returning
from services.gateway.api.slide_lookup import SlideName, wanted_label_map
from services.gateway.api.slide_threads import reads_slide
from services.gateway.api.zoom import Level, TileNumber, zoom_as_ingested, zoom_of
from shared.contracts.base import Name
from shared.storage import sha256

CACHED = "private, max-age=3600"

MAX_CROP_SIDE = 1024
"""Largest side of a crop in pixels of the crop."""

router = APIRouter(prefix="/v1/slides/{slide}", tags=["tiles"], route_class=JsonRoute)


@router.get(
    "/deepzoom.dzi",
    response_class=Response,
    responses=documented(404) | returning("application/xml"),
)
@reads_slide
def describe_tiles(slide: SlideName, request: Request, caller: MayRead) -> Response:
    """Return the Deep Zoom description of a slide's tiles, which OpenSeadragon opens."""
    zoom, _ = zoom_of(request, caller, slide)
    return Response(zoom.tiles.get_dzi("jpeg"), media_type="application/xml")


@router.get(
    "/deepzoom_files/{level}/{column}_{row}.jpeg",
    response_class=Response,
    responses=drawing("image/jpeg"),
)
@reads_slide
def get_tile(
    slide: SlideName,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a zoom tile of a slide as JPEG."""
    zoom, version = zoom_of(request, caller, slide)
    tag = f"{version}-{level}-{column}-{row}"
    return drawn(tag, if_none_match, CACHED, "image/jpeg", partial(zoom.tile, level, column, row))


@router.get(
    "/labels/{level}/{column}_{row}.png",
    response_class=Response,
    responses=drawing("image/png") | documented(409),
)
@reads_slide
def get_label_tile(
    slide: SlideName,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    cohort: Annotated[
        Name | None, Query(description="the cohort that made it; default: the first by name")
    ] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a zoom tile of a slide's label map, to show over the slide's own tile."""
    found = wanted_label_map(caller, slide, cohort)
    zoom, _, version = zoom_as_ingested(request, caller, slide, found.slide)
    labels = label_tiles(request, caller.store, found.key, found.sha256)
    palette = sha256(repr(found.classes.colors).encode())[:16]
    tag = f"{version}-{labels.version}-{palette}-{level}-{column}-{row}"
    draw = partial(labels.tile, zoom, level, column, row, found.classes)
    return drawn(tag, if_none_match, CACHED, "image/png", draw)


@router.get(
    "/crop.png",
    response_class=Response,
    responses=drawing("image/png") | documented(409),
)
@reads_slide
def get_crop(
    slide: SlideName,
    x: Annotated[int, Query(ge=0, le=2**31, description="left edge, level-0 pixels")],
    y: Annotated[int, Query(ge=0, le=2**31, description="upper edge, level-0 pixels")],
    side: Annotated[
        int, Query(ge=1, le=MAX_CROP_SIDE, description="side of the square in its own pixels")
    ],
    mpp: Annotated[float, Query(gt=0, le=1000, description="µm per pixel of the square")],
    request: Request,
    caller: MayRead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Cut a square out of an ingested slide, at a chosen resolution."""
    zoom, record, version = zoom_as_ingested(request, caller, slide)
    tag = f"{version}-crop-{x}-{y}-{side}-{mpp}"
    draw = partial(zoom.crop, (x, y), side, mpp, (record.mpp, record.mpp_y))
    return drawn(tag, if_none_match, CACHED, "image/png", draw)
