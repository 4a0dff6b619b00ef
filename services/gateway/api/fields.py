"""/v1/fields: images of any size, made by jobs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from services.gateway.api.access import Caller, MayGenerate, MayRead, public
from services.gateway.api.body_sizes import MAX_IMAGE_BYTES
from services.gateway.api.given_pictures import Pictures, check_indices, png_sides, read_crop
from services.gateway.api.image_jobs import region_crop
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, absent, blaming, documented
from services.gateway.api.slide_lookup import find_slide
from services.gateway.api.streams import Wanted, send_object, sending
from services.gateway.api.turns import decoded
from shared.contracts.base import Name
from shared.contracts.field import FieldRecord, FieldRequest, PlacedCrop, field_key
from shared.contracts.field_bodies import FieldBody, FieldInfo, FieldPage
from shared.contracts.gateway import CropBody
from shared.contracts.image import GivenCrop
from shared.contracts.jobs import ENDED, JobStatus
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import SamplingChoice
from shared.datasets.field_crops import check_sources
from shared.datasets.field_inputs import (
    check_classes,
    count_labels,
    layout_shares,
    put_crop,
    put_label_map,
)
from shared.errors import InputError
from shared.imaging.masks import MAX_PIXELS
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.stored_slides import StoredLabelMap, label_map_in, open_label_map
from shared.jobs.names import owner
from shared.models import check_layouts, pinned, read_model
from shared.storage import ObjectNotFoundError

MAX_SIDE = 1 << 15
"""Greatest side of a label map in a body, pixels."""

FieldName = Annotated[Name, PathParameter(description="name of the field")]
TYPES = {
    "slide.tiff": "image/tiff",
    "labels.tiff": "image/tiff",
    "regions.geojson": "application/geo+json",
}

router = APIRouter(prefix="/v1/fields", tags=["fields"], route_class=JsonRoute)


@router.post("", status_code=202, max_body_size=MAX_IMAGE_BYTES, responses=documented(404, 409))
async def submit_field(body: FieldBody, caller: MayGenerate, response: Response) -> JobStatus:
    """Submit a request for one image of any size; its job makes it in strips.

    It counts as the images that have as many pixels.
    """
    status = await decoded(caller, _submit, caller, body)
    response.headers["Location"] = f"/v1/jobs/{status.job}"
    return status


def _submit(caller: Caller, body: FieldBody) -> JobStatus:
    with blaming("#/model"):
        body = pinned(caller.store, body)
        model = read_model(caller.store, body.model_ref)
    with blaming("#/steps"):
        body.sampling(model)
    chosen = None
    if body.sampled is not None:
        with blaming("#/sampled"):
            check_layouts(model)
            width, height = _check_sides(body.sampled.width, body.sampled.height, model)
            layout_shares(caller.store, model, body.sampled.proportions)
    elif body.labels is not None:
        with blaming("#/labels"):
            width, height = _check_sides(*png_sides(body.labels), model)
    else:
        with blaming("#/slide"):
            chosen = _slide_labels(caller, body, model)
            width, height = _check_sides(*_map_sides(caller, chosen), model)
    pngs = [png for png in (body.labels, *(crop.png for crop in body.crops)) if png is not None]
    images = -(-width * height // model.size**2)
    with (
        caller.spending("images", images),
        caller.spending("upload_bytes", sum(map(len, pngs))),
    ):
        job = caller.submit(_put_inputs(caller, body, model, chosen))
    return caller.status(job)


def _put_inputs(
    caller: Caller, body: FieldBody, model: ModelRecord, chosen: StoredLabelMap | None
) -> FieldRequest:
    """Check and store the pictures of a body; return the request that names them.

    Args:
        chosen: the label map of a slide; None: it is in the body, or sampled.
    """
    crops = []
    labels, digest = (chosen.key, chosen.sha256) if chosen is not None else (None, None)
    with Pictures(model.size) as pictures:
        for number, item in enumerate(body.crops):
            with blaming(f"#/crops/{number}"):
                crops.append(
                    PlacedCrop(**_crop(caller, item, model, pictures).model_dump(), at=item.at)
                )
    if body.labels is not None:
        with blaming("#/labels"):
            labels = _put_labels(caller, body.labels, model)
    if labels is not None:
        given = "#/slide" if body.labels is None else "#/labels"
        with blaming(given), open_label_map(caller.store, labels, digest) as opened:
            present = np.flatnonzero(count_labels(opened, model)).tolist()
        with blaming("#/crops" if crops else "#/appearances"):
            check_sources(caller.store, model, present, crops, body.appearances)
    options = body.model_dump(
        include={
            "field", "model", "version", "sampled", "appearances", "seed", "compression",
            *SamplingChoice.model_fields,
        }
    )  # fmt: skip
    return FieldRequest(labels=labels, labels_sha256=digest, crops=tuple(crops), **options)


@router.get("")
def list_fields(caller: MayRead, limit: Limit = 50, cursor: Cursor = None) -> FieldPage:
    """List fields by name, the unfinished too."""
    claims = caller.store.list("names/fields/")
    claimed = {key.removeprefix("names/fields/").removesuffix(".json") for key in claims}
    names = sorted(claimed.union(caller.store.folders("fields/")))
    items, following = page(names, cursor, limit, partial(find_field, caller))
    return FieldPage(items=items, next=following)


def find_field(caller: Caller, field: str) -> FieldInfo | None:
    """Return a field's status and record, or None if there is neither."""
    job = owner(caller.store, f"fields/{field}")
    found = caller.ledger.find(job) if job else None
    key = field_key(field, "field.json")
    record = caller.store.get_model(key, FieldRecord) if caller.store.exists(key) else None
    if found is None and record is None:
        return None
    return FieldInfo(field=field, status=public(found) if found else None, record=record)


def finished_field(caller: Caller, field: str) -> FieldRecord:
    """Return the record of a finished field.

    Raises:
        ProblemError: there is none (404), or it is not made yet, or its job has failed (409).
    """
    try:
        return caller.store.get_model(field_key(field, "field.json"), FieldRecord)
    except ObjectNotFoundError as error:
        found = find_field(caller, field)
        if found is None:
            raise _no_field(field) from error
        if found.status is None or found.status.state == "done":
            raise
        job, state = found.status.job, found.status.state
        going = state not in ENDED
        raise ProblemError(
            409,
            "in-the-making" if going else "not-made",
            f"field {field!r} is not there: its job {job} is {state}",
            remedy=f"GET /v1/jobs/{job}" + ("" if going else ", or send the request again"),
            headers={"Retry-After": "5"} if going else None,
        ) from error


def _no_field(field: str) -> ProblemError:
    return absent("field", field, "GET /v1/fields lists those there are")


@router.get("/{field}", responses=documented(404, 409))
def show_field(field: FieldName, caller: MayRead) -> FieldRecord:
    """Return the record of a finished field."""
    return finished_field(caller, field)


@router.get(
    "/{field}/{file}",
    response_class=StreamingResponse,
    responses=documented(404, 409) | sending("application/octet-stream"),
)
def get_field_file(
    field: FieldName,
    file: Literal["slide.tiff", "labels.tiff", "regions.geojson"],
    caller: MayRead,
    wanted: Wanted,
) -> Response:
    """Download a field as a slide, its label pyramid, or the outlines of its regions."""
    record = finished_field(caller, field)
    key, name, digest = field_key(field, file), f"{field}-{file}", record.sha256.get(file)
    return send_object(caller.store, key, wanted, TYPES[file], name, digest)


@router.delete("/{field}", status_code=204, responses=documented(404, 409))
def delete_field(field: FieldName, caller: MayGenerate) -> None:
    """Delete a field and the records of its job; refused while the field is being made."""
    if find_field(caller, field) is None:
        raise _no_field(field)
    caller.delete(f"fields/{field}")


def _slide_labels(caller: Caller, body: FieldBody, model: ModelRecord) -> StoredLabelMap:
    """Return a slide's label map. Raises `InputError` if it has other classes, or there is none."""
    slide = str(body.slide)
    find_slide(caller, slide)
    found = label_map_in(caller.store, slide, str(body.cohort))
    check_classes(found, model)
    return found


def _map_sides(caller: Caller, found: StoredLabelMap) -> tuple[int, int]:
    with open_label_map(caller.store, found.key, found.sha256) as labels:
        return labels.width, labels.height


def _check_sides(width: int, height: int, model: ModelRecord) -> tuple[int, int]:
    """Return the sides of a label map. Raises `InputError` if they are unfit."""
    size = f"the label map has {width}×{height} px"
    if min(width, height) < model.size:
        raise InputError(
            f"{size}: send at least {model.size}×{model.size} px, the size of {model.model}"
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{size}: send at most {MAX_SIDE} px along each side, and {MAX_PIXELS // 10**6} "
            "million pixels"
        )
    return width, height


def _put_labels(caller: Caller, data: bytes, model: ModelRecord) -> str:
    with tempfile.TemporaryDirectory(prefix="htd-field-") as folder:
        path = Path(folder) / "labels.png"
        path.write_bytes(data)
        mask = open_mask(path)
        check_indices(mask)
        _check_sides(mask.width, mask.height, model)
        return put_label_map(caller.store, mask, model)


def _crop(caller: Caller, item: CropBody, model: ModelRecord, pictures: Pictures) -> GivenCrop:
    if item.png is not None:
        pixels = read_crop(item.png, model, pictures)
        return put_crop(caller.store, item.tissue, pixels, model)
    return region_crop(caller.store, item, model)
