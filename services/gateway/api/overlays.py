"""Overlays of a slide's zoom tiles: the tissue mask, and a clustering's tissue types."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path as FilePath
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from services.gateway.api.access import Caller, MayRead
from services.gateway.api.etags import IfNoneMatch, drawing, drawn
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.label_tiles import colored
from services.gateway.api.problems import documented
from services.gateway.api.slide_lookup import SlideName, cohort_of
from services.gateway.api.slide_threads import reads_slide
from services.gateway.api.zoom import Level, TileNumber, zoom_as_ingested
from shared.arrays import Float64, UInt8
from shared.contracts.base import Name
from shared.contracts.cluster import ClusterRecord, cluster_key
from shared.contracts.ingest import slide_key
from shared.imaging.label_map import LabelMap
from shared.imaging.pictures import open_picture
from shared.storage import sha256
from shared.tissue_types import classes_of, read_types

TISSUE = (0, 137, 123)
MAPS_HELD = 8
"""Number of maps in memory; the largest tissue mask takes 64 MiB."""

FRESH = "private, no-cache"
"""Cache-Control: browsers ask each time, because people change colours; most answers are 304."""

router = APIRouter(prefix="/v1/slides/{slide}", tags=["tiles"], route_class=JsonRoute)

Run = Annotated[Name, Path(description="name of the clustering")]
Picture = drawing("image/png") | documented(409)


@router.get("/tissue/{level}/{column}_{row}.png", response_class=Response, responses=Picture)
@reads_slide
def get_tissue_tile(
    slide: SlideName,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a tile of the slide's tissue mask: tissue is coloured, glass is transparent."""
    path, version = _file(caller, slide_key(slide, "tissue.png"))
    zoom, _, _ = zoom_as_ingested(request, caller, slide)

    def draw() -> bytes:
        mask, _ = _read_map(path, version)
        height, width = mask.shape
        steps = (zoom.slide.dimensions[0] / width, zoom.slide.dimensions[1] / height)
        picked = _pick(mask, zoom.centres(level, column, row), steps)
        return colored((picked > 0).astype(np.uint8), [(0, 0, 0), TISSUE])

    return drawn(f"{version}-{level}-{column}-{row}", if_none_match, FRESH, "image/png", draw)


@router.get(
    "/clusters/{run}/{level}/{column}_{row}.png", response_class=Response, responses=Picture
)
@reads_slide
def get_type_tile(
    slide: SlideName,
    run: Run,
    level: Level,
    column: TileNumber,
    row: TileNumber,
    request: Request,
    caller: MayRead,
    type: Annotated[int | None, Query(ge=1, le=255, description="show only this type")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a tile of a clustering's tissue types, in the colours that people chose."""
    clustering = caller.store.get_model(cluster_key(run, "run.json"), ClusterRecord)
    cohort, name = cohort_of(caller, clustering.cohort, slide)
    path, version = _file(caller, cluster_key(run, f"labels/{name}.tif"))
    zoom, record, _ = zoom_as_ingested(request, caller, slide, cohort.sha256[name])
    k = clustering.k
    classes, table = classes_of(read_types(caller.store, run, k))
    if type is not None:
        table = np.where(np.arange(256) == type, table, 0).astype(np.uint8)
    palette = sha256(table.tobytes() + bytes(np.asarray(classes.colors, np.uint8)))[:16]

    def draw() -> bytes:
        labels, mpp = _read_map(path, version)
        steps = (mpp / record.mpp, mpp / record.mpp_y)
        return colored(
            table[_pick(labels, zoom.centres(level, column, row), steps)], classes.colors
        )

    tag = f"{version}-{palette}-{level}-{column}-{row}"
    return drawn(tag, if_none_match, FRESH, "image/png", draw)


def _file(caller: Caller, key: str) -> tuple[FilePath, str]:
    """Return the local file of an object, and its version. Raises `ObjectNotFoundError`."""
    path = caller.store.local(key)
    state = path.stat()
    return path, sha256(f"{path} {state.st_size} {state.st_mtime_ns}".encode())[:24]


@lru_cache(MAPS_HELD)
def _read_map(path: FilePath, version: str) -> tuple[UInt8, float]:
    """Read a whole map, uint8 (height, width), and its µm per pixel (0 for a mask in PNG).

    `version` is not read; as a key of the cache, it makes a changed file be read again.
    """
    if path.suffix == ".tif":
        with LabelMap(path) as opened:
            return opened.whole(), opened.mpp
    with open_picture(path) as image:
        return np.asarray(image.convert("L")), 0.0


def _pick(
    labels: UInt8,
    centres: tuple[Float64, Float64],
    steps: tuple[float, float],
) -> UInt8:
    """Return the labels at the points `centres`, in level-0 pixels, as uint8 (height, width).

    A pixel of the map `labels` is `steps` level-0 pixels wide and high.
    """
    xs, ys = (
        (at / step).astype(int).clip(0, count - 1)
        for at, step, count in zip(centres, steps, labels.shape[::-1], strict=True)
    )
    picked: UInt8 = labels[np.ix_(ys, xs)]
    return picked
