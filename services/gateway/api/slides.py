"""/v1/slides: upload, register, list and delete slides and their annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import Caller, MayAnnotate, MayRead
from services.gateway.api.body_sizes import MAX_ANNOTATION_BYTES, MAX_SLIDE_BYTES
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.paths import check_paths
from services.gateway.api.problems import ProblemError, blaming, documented, returning
from services.gateway.api.receiving import RAW_BODY, ContentLength, check_place, file_name, received
from services.gateway.api.slide_lookup import (
    SlideName,
    find_slide,
    slide_info,
    wanted_label_map,
)
from services.gateway.api.streams import Wanted, send_object, sending
from shared.contracts.annotations import ANNOTATION_SUFFIXES, has_annotation_suffix
from shared.contracts.base import Name
from shared.contracts.gateway import SlideInfo, SlidePage, SlideReference
from shared.contracts.ingest import slide_key
from shared.storage import Store

router = APIRouter(prefix="/v1/slides", tags=["slides"], route_class=JsonRoute)

FileName = Annotated[str, Path(max_length=256, description="name of the file")]


@router.get("")
def list_slides(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> SlidePage:
    """List slides by name."""
    names = caller.store.folders("slides/")
    items, following = page(names, cursor, limit, lambda name: slide_info(caller.store, name))
    return SlidePage(items=items, next=following)


@router.get("/{slide}", responses=documented(404))
def show_slide(slide: SlideName, caller: MayRead) -> SlideInfo:
    """Return a slide's files, and its record once it is ingested."""
    return find_slide(caller, slide)


@router.post("", status_code=201)
def register_slide(reference: SlideReference, caller: MayAnnotate, response: Response) -> SlideInfo:
    """Register a slide whose file is already in the store."""
    check_paths(reference, caller.resources.config.networks)
    with blaming("#/source"):
        caller.store.size(reference.source)
    caller.store.put_json(slide_key(reference.slide, "reference.json"), reference)
    caller.audit("register slide", slide=reference.slide, source=reference.source)
    response.headers["Location"] = f"/v1/slides/{reference.slide}"
    return find_slide(caller, reference.slide)


@router.put(
    "/{slide}/source/{file:path}",
    max_body_size=MAX_SLIDE_BYTES,
    openapi_extra=RAW_BODY,
    responses=documented(400, 413),
)
async def put_source(
    slide: SlideName,
    file: FileName,
    request: Request,
    caller: MayAnnotate,
    content_length: ContentLength,
) -> SlideInfo:
    """Upload a slide's file as the body. A slide of several files needs several requests."""
    key = slide_key(slide, f"source/{file_name(file)}")
    return await _put(request, caller, slide, key, content_length, _add)


@router.put(
    "/{slide}/annotation/{file}",
    max_body_size=MAX_ANNOTATION_BYTES,
    openapi_extra=RAW_BODY,
    responses=documented(400, 413, 415),
)
async def put_annotation(
    slide: SlideName,
    file: FileName,
    request: Request,
    caller: MayAnnotate,
    content_length: ContentLength,
) -> SlideInfo:
    """Upload a slide's annotation as the body, in any format that `htd ingest` reads.

    It replaces an earlier annotation; of two that come at the same time, both may stay. Ingest
    reads it and reports its errors.
    """
    key = slide_key(slide, f"annotation/{file_name(file)}")
    if not has_annotation_suffix(file):
        raise ProblemError(
            415,
            "unknown-annotation",
            f"{file!r} does not have the suffix of an annotation",
            remedy=f"use the suffix of its format: {', '.join(ANNOTATION_SUFFIXES)}",
        )
    return await _put(request, caller, slide, key, content_length, _replace)


def _add(store: Store, key: str, path: FilePath) -> None:
    store.put_file(key, path)


def _replace(store: Store, key: str, path: FilePath) -> None:
    """Store a file in place of what is in its folder now.

    What somebody else puts there meanwhile stays: two who each deleted what the other has put would
    leave nothing.
    """
    folder = f"{PurePosixPath(key).parent}/"
    before = dict(store.dates(folder))
    store.put_file(key, path)
    now = dict(store.dates(folder))
    for other, date in before.items():
        if other != key and now.get(other) == date:
            store.delete(other)


async def _put(
    request: Request,
    caller: Caller,
    slide: str,
    key: str,
    size: int,
    put: Callable[[Store, str, FilePath], None],
) -> SlideInfo:
    await run_in_threadpool(check_place, caller.store, key)
    spending = contextmanager_in_threadpool(caller.spending("upload_bytes", size))
    async with spending, received(request, size) as path:
        await run_in_threadpool(put, caller.store, key, path)
    await run_in_threadpool(caller.audit, "upload", slide=slide, key=key, bytes=size)
    return await run_in_threadpool(find_slide, caller, slide)


@router.get(
    "/{slide}/annotation",
    response_class=StreamingResponse,
    responses=documented(404) | sending("application/octet-stream"),
)
def get_annotation(slide: SlideName, caller: MayRead, wanted: Wanted) -> Response:
    """Download the annotation that was uploaded for a slide."""
    key = find_slide(caller, slide).annotation
    if key is None:
        raise ProblemError(404, "no-annotation", f"slide {slide!r} has no annotation")
    name = PurePosixPath(key).name
    return send_object(caller.store, key, wanted, "application/octet-stream", name)


@router.get(
    "/{slide}/thumbnail.png",
    response_class=Response,
    responses=documented(404) | returning("image/png"),
)
def get_thumbnail(slide: SlideName, caller: MayRead) -> Response:
    """Return the small picture of a slide that ingest made."""
    data = caller.store.get(slide_key(slide, "thumbnail.png"))
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


@router.get(
    "/{slide}/labels.tif",
    response_class=StreamingResponse,
    responses=documented(404) | sending("image/tiff"),
)
def get_label_map(
    slide: SlideName,
    caller: MayRead,
    wanted: Wanted,
    cohort: Annotated[
        Name | None, Query(description="the cohort that made it; default: the first by name")
    ] = None,
) -> Response:
    """Download a label map that ingest made from a slide's annotation, as TIFF."""
    found = wanted_label_map(caller, slide, cohort)
    name = f"{slide}-labels.tif"
    return send_object(caller.store, found.key, wanted, "image/tiff", name, found.sha256)


@router.delete("/{slide}", status_code=204, responses=documented(404))
def delete_slide(slide: SlideName, caller: MayAnnotate) -> None:
    """Delete a slide's files and label map; patches, features and regions of cohorts stay."""
    find_slide(caller, slide)
    caller.store.delete_prefix(slide_key(slide, ""))
    caller.audit("delete slide", slide=slide)
