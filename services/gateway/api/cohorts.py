"""/v1/cohorts, /v1/regions, /v1/features: cohorts, region sets, and uploads of features."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import MayRead, MayTrain
from services.gateway.api.body_sizes import MAX_FEATURE_BYTES
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, documented, returning
from services.gateway.api.receiving import RAW_BODY, ContentLength, received
from shared.contracts.base import Name
from shared.contracts.gateway import Names, RegionPage, RegionRow
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionSet, region_set_key, region_table_key
from shared.imaging.codec import encode_png
from shared.imaging.marks import UNNAMED, mark_png
from shared.imaging.region_sets import RegionNotFoundError, read_region
from shared.imaging.sheet import colorize
from shared.storage.formats import read_table

router = APIRouter(prefix="/v1", tags=["cohorts"], route_class=JsonRoute)

SetName = Annotated[Name, Path(description="name of the region set")]


@router.get("/cohorts")
def list_cohorts(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> Names:
    """List cohorts by name."""
    prefix, suffix = cohort_key("").split(".")[0], ".json"
    names = (key.removeprefix(prefix).removesuffix(suffix) for key in caller.store.list(prefix))
    items, following = page(names, cursor, limit, str)
    return Names(items=items, next=following)


@router.get("/cohorts/{cohort}", responses=documented(404))
def show_cohort(cohort: Name, caller: MayRead) -> CohortRecord:
    """Return a cohort's record: its slides and their splits."""
    return caller.store.get_model(cohort_key(cohort), CohortRecord)


@router.get("/regions")
def list_region_sets(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> Names:
    """List region sets by name."""
    items, following = page(caller.store.folders("regions/"), cursor, limit, str)
    return Names(items=items, next=following)


@router.get("/regions/{name}", responses=documented(404))
def show_region_set(name: SetName, caller: MayRead) -> RegionSet:
    """Return a region set's record: its classes, rule and slides."""
    return caller.store.get_model(region_set_key(name), RegionSet)


@router.get("/regions/{name}/{slide}", responses=documented(404))
def list_regions(
    name: SetName, slide: Name, caller: MayRead, limit: Limit = 50, cursor: Cursor = None
) -> RegionPage:
    """List the regions of a slide in a region set, by key."""
    columns = ["key", "slide", "x", "y", "fractions"]
    table = read_table(caller.store, region_table_key(name, slide), columns)
    rows = {row["key"]: row for row in table.to_pylist()}
    items, following = page(
        sorted(rows), cursor, limit, lambda key: RegionRow.model_validate(rows[key])
    )
    return RegionPage(items=items, next=following)


@router.get(
    "/regions/{name}/{slide}/{key}.png",
    response_class=Response,
    responses=documented(404) | returning("image/png"),
)
def show_region(
    name: SetName,
    slide: Name,
    key: Name,
    caller: MayRead,
    show: Annotated[
        Literal["image", "labels", "colors"],
        Query(description="the tissue, its class indices, or its classes in their colours"),
    ] = "image",
) -> Response:
    """Return a region as PNG, marked if its slide says that it is synthetic."""
    record = caller.store.get_model(region_set_key(name), RegionSet)
    own = tuple(part for part in record.slides if part.slide == slide and part.regions)
    if not own:
        raise ProblemError(
            404, "no-region", f"region set {name!r} has no region of slide {slide!r}"
        )
    try:
        region = read_region(caller.store, record.model_copy(update={"slides": own}), key)
    except RegionNotFoundError as error:
        raise ProblemError(404, "no-region", str(error)) from error
    shown = region.image if show == "image" else region.labels
    if show == "colors":
        shown = colorize(region.labels, record.classes.colors)
    png = encode_png(shown)
    if own[0].synthetic:
        png = mark_png(png, UNNAMED)
    return Response(png, media_type="image/png")


@router.put(
    "/features/{name}/{slide}.h5",
    status_code=204,
    max_body_size=MAX_FEATURE_BYTES,
    openapi_extra=RAW_BODY,
    responses=documented(400, 413),
)
async def put_features(
    name: Name, slide: Name, request: Request, caller: MayTrain, content_length: ContentLength
) -> None:
    """Upload a slide's .h5 file of features from TRIDENT or CLAM, under a name that you choose.

    To import the files of a cohort's slides, POST /v1/embed with
    `imported: incoming/features/<name>`.
    """
    key = f"incoming/features/{name}/{slide}.h5"
    spending = contextmanager_in_threadpool(caller.spending("upload_bytes", content_length))
    async with spending, received(request, content_length) as path:
        await run_in_threadpool(caller.store.put_file, key, path)
    await run_in_threadpool(caller.audit, "upload", key=key, bytes=content_length)
