"""/v1/slides/{slide}/uploads: resumable uploads of large files in parts."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import Caller, MayAnnotate
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.problems import ProblemError, documented
from services.gateway.api.receiving import RAW_BODY, ContentLength, check_place, file_name, received
from services.gateway.api.slide_lookup import SlideName, find_slide
from shared.contracts.base import Name
from shared.contracts.gateway import (
    SlideInfo,
    Upload,
    UploadBody,
    UploadPart,
    UploadRecord,
    UploadStatus,
    upload_key,
)
from shared.contracts.ingest import slide_key
from shared.storage import ObjectNotFoundError
from shared.storage.parts import PartUpload, part_upload

PART_BYTES = 64 << 20
MAX_PARTS = 10_000
MAX_PARTS_SHOWN = 100
LINK_SECONDS = 12 * 3600

router = APIRouter(prefix="/v1/slides/{slide}/uploads", tags=["uploads"], route_class=JsonRoute)

UploadName = Annotated[Name, Path(description="id of the upload")]
Number = Annotated[int, Path(ge=1, le=MAX_PARTS, description="number of the part, from 1")]


def _find(caller: Caller, slide: str, upload: str) -> tuple[UploadRecord, PartUpload]:
    try:
        record = caller.store.get_model(upload_key(upload), UploadRecord)
    except ObjectNotFoundError:
        record = None
    if record is None or record.upload.slide != slide:
        raise ProblemError(
            404, "no-upload", f"slide {slide!r} has no upload {upload!r}", remedy="begin a new one"
        )
    return record, part_upload(caller.store, slide_key(slide, f"source/{record.upload.file}"))


def _status(record: UploadRecord, parts: PartUpload) -> UploadStatus:
    upload = record.upload
    arrived = parts.parts(record.internal)
    missing = [number for number in range(1, upload.parts + 1) if number not in arrived]
    return UploadStatus(
        upload=upload,
        arrived=tuple(sorted(arrived)),
        missing=tuple(
            UploadPart(
                number=number,
                bytes=_size(upload, number),
                url=parts.url(record.internal, number, _size(upload, number), LINK_SECONDS)
                or f"/v1/slides/{upload.slide}/uploads/{upload.upload}/parts/{number}",
            )
            for number in missing[:MAX_PARTS_SHOWN]
        ),
    )


def _drop(caller: Caller, record: UploadRecord, parts: PartUpload) -> None:
    parts.abort(record.internal)
    caller.store.delete(upload_key(record.upload.upload))


def _size(upload: Upload, number: int) -> int:
    return min(upload.part_bytes, upload.bytes - (number - 1) * upload.part_bytes)


@router.post("", status_code=201)
def begin_upload(
    slide: SlideName, body: UploadBody, caller: MayAnnotate, response: Response
) -> UploadStatus:
    """Begin to upload a large file in parts; the answer has the URLs of the first parts."""
    file = file_name(body.file)
    key = slide_key(slide, f"source/{file}")
    check_place(caller.store, key)
    parts = part_upload(caller.store, key)
    part_bytes = max(PART_BYTES, -(-body.bytes // MAX_PARTS))
    upload = Upload(
        upload=secrets.token_hex(16),
        slide=slide,
        file=file,
        bytes=body.bytes,
        part_bytes=part_bytes,
        parts=-(-body.bytes // part_bytes),
    )
    with caller.spending("upload_bytes", body.bytes):
        record = UploadRecord(upload=upload, internal=parts.begin())
        caller.store.put_json(upload_key(upload.upload), record)
    caller.audit("begin upload", slide=slide, file=file, bytes=body.bytes)
    response.headers["Location"] = f"/v1/slides/{slide}/uploads/{upload.upload}"
    return _status(record, parts)


@router.get("/{upload}", responses=documented(404))
def show_upload(slide: SlideName, upload: UploadName, caller: MayAnnotate) -> UploadStatus:
    """Return the parts that have arrived, and the URLs of the next missing parts."""
    return _status(*_find(caller, slide, upload))


@router.put(
    "/{upload}/parts/{number}",
    status_code=204,
    max_body_size=1 << 30,
    openapi_extra=RAW_BODY,
    responses=documented(400, 404, 413),
)
async def put_part(
    slide: SlideName,
    upload: UploadName,
    number: Number,
    request: Request,
    caller: MayAnnotate,
    content_length: ContentLength,
) -> None:
    """Upload one part as the body, if the store gives no URLs for parts."""
    record, parts = await run_in_threadpool(_find, caller, slide, upload)
    if number > record.upload.parts or content_length != _size(record.upload, number):
        raise ProblemError(
            422,
            "wrong-part",
            f"part {number} of {content_length} bytes does not fit: there are "
            f"{record.upload.parts} parts of {record.upload.part_bytes} bytes; the last part has "
            "the rest",
        )
    async with received(request, content_length) as path:
        await run_in_threadpool(parts.put, record.internal, number, path)


@router.post("/{upload}/complete", responses=documented(404, 409))
def complete_upload(slide: SlideName, upload: UploadName, caller: MayAnnotate) -> SlideInfo:
    """Join the parts of an upload into the slide's file."""
    record, parts = _find(caller, slide, upload)
    arrived = parts.parts(record.internal)
    if any(size > _size(record.upload, number) for number, size in arrived.items()):
        _drop(caller, record, parts)
        raise ProblemError(
            422,
            "wrong-part",
            f"more bytes than the {record.upload.bytes} that were announced have arrived, so the "
            "upload was removed",
            remedy="begin a new upload, with the size of the file",
        )
    wrong = [
        number
        for number in range(1, record.upload.parts + 1)
        if arrived.get(number) != _size(record.upload, number)
    ]
    if wrong:
        raise ProblemError(
            409,
            "parts-missing",
            f"{len(wrong)} of {record.upload.parts} parts are missing or of a wrong size, "
            f"the first of them part {wrong[0]}",
            remedy="PUT these parts, then complete again",
        )
    check_place(caller.store, slide_key(slide, f"source/{record.upload.file}"))
    parts.complete(record.internal, record.upload.parts)
    caller.store.delete(upload_key(upload))
    caller.audit("complete upload", slide=slide, file=record.upload.file)
    return find_slide(caller, slide)


@router.delete("/{upload}", status_code=204, responses=documented(404))
def abort_upload(slide: SlideName, upload: UploadName, caller: MayAnnotate) -> None:
    """Delete an upload and its parts."""
    record, parts = _find(caller, slide, upload)
    _drop(caller, record, parts)
