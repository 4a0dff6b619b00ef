"""/v1/images: make one image while the client waits."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import Caller, MayGenerate, MayRead
from services.gateway.api.body_sizes import MAX_IMAGE_BYTES
from services.gateway.api.given_pictures import Pictures
from services.gateway.api.image_bodies import IMAGE_BODY, read_image_body
from services.gateway.api.image_jobs import (
    PICTURE,
    Prefer,
    given_crop,
    seconds_of,
    submit_image,
    wait_for_image,
)
from services.gateway.api.job_lookup import JobId, check_job
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.problems import blaming, documented
from services.gateway.api.turns import decoded
from shared.arrays import UInt8
from shared.contracts.gateway import ImageBody
from shared.contracts.image import ImageRequest, input_key
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import SamplingChoice
from shared.datasets.field_inputs import read_labels
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.models import pinned, read_model
from shared.serving.deployments import check_plan
from shared.storage import Store

router = APIRouter(prefix="/v1/images", tags=["images"], route_class=JsonRoute)


@router.post(
    "",
    response_class=Response,
    max_body_size=MAX_IMAGE_BYTES,
    openapi_extra=IMAGE_BODY,
    responses=documented(404) | PICTURE,
)
async def make_image(request: Request, caller: MayGenerate, prefer: Prefer = None) -> Response:
    """Make one image from a label map and crops, with priority over the images of datasets."""
    body = await read_image_body(request)
    job = await decoded(caller, _submit, caller, body)
    return await wait_for_image(caller, job, seconds_of(prefer))


@router.get("/{job}", response_class=Response, responses=documented(404) | PICTURE)
async def show_image(job: JobId, caller: MayRead, prefer: Prefer = None) -> Response:
    """Return an image that was requested before; without `Prefer`, answer without waiting."""
    await run_in_threadpool(check_job, caller, job)
    return await wait_for_image(caller, job, seconds_of(prefer) if prefer else 0.0)


def _submit(caller: Caller, body: ImageBody) -> str:
    return submit_image(caller, *_resolve(caller.store, body))


def _resolve(store: Store, body: ImageBody) -> tuple[ImageRequest, list[bytes]]:
    """Check the body against the model; return the request and the PNGs that it names by hash."""
    with blaming("#/model"):
        body = pinned(store, body)
        model = read_model(store, body.model_ref)
    with Pictures(model.size) as pictures:
        with blaming("#/labels"):
            labels = encode_png(_read_label_map(body.labels, model, pictures))
        inputs, crops, sides = [labels], [], []
        for number, item in enumerate(body.crops):
            with blaming(f"#/crops/{number}"):
                crop, pixels, side = given_crop(store, item, model, pictures)
                crops.append(crop)
                sides.append(side)
                inputs += [pixels] if pixels is not None else []
    with blaming("#/crops"):
        check_plan(store, model, sides)
    options = body.model_dump(include={"model", "version", "seed", *SamplingChoice.model_fields})
    request = ImageRequest(image="none", labels=input_key(labels), crops=tuple(crops), **options)
    with blaming("#/steps"):
        request.sampling(model)
    return request, inputs


def _read_label_map(data: bytes, model: ModelRecord, pictures: Pictures) -> UInt8:
    """Decode a PNG of a label map to uint8 (size, size). Raises `InputError` if it is unfit."""
    mask = pictures.open_mask(data, "labels")
    if (mask.width, mask.height) != (model.size, model.size):
        raise InputError(
            f"the label map has {mask.width}×{mask.height} px: send one of "
            f"{model.size}×{model.size} px, the size of {model.model}"
        )
    return read_labels(mask, model)
