"""/v1/images: make one image while the client waits."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from anyio import sleep
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import Caller, MayGenerate, MayRead
from services.gateway.api.body_sizes import MAX_IMAGE_BYTES
from services.gateway.api.given_pictures import Pictures, read_crop
from services.gateway.api.image_bodies import IMAGE_BODY, read_image_body
from services.gateway.api.job_lookup import JobId, check_job
from services.gateway.api.problems import ProblemError, blaming, documented, hide_paths
from services.gateway.api.turns import decoded, seated
from shared.arrays import UInt8
from shared.contracts.gateway import CropBody, ImageBody
from shared.contracts.image import GivenCrop, ImageRequest, input_key
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.regions import RegionSet, region_set_key
from shared.contracts.synthesize import SamplingChoice
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.sandboxed_picture import GREY
from shared.models import read_model
from shared.serving.deployments import check_crops, deployments
from shared.storage import Store, sha256

WAIT_SECONDS, MAX_WAIT_SECONDS = 20.0, 60.0
POLL_SECONDS = 0.05

Prefer = Annotated[
    str | None,
    Header(
        max_length=100,
        description="`wait=<seconds>`: time to wait for the image before the answer 202; "
        "20 by default, at most 60",
    ),
]
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The image"},
    202: {"description": "The image is not made yet: GET the URL in Location"},
}

router = APIRouter(prefix="/v1/images", tags=["images"])


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
    return await _wait(caller, job, _seconds(prefer))


@router.get("/{job}", response_class=Response, responses=documented(404) | PICTURE)
async def show_image(job: JobId, caller: MayRead, prefer: Prefer = None) -> Response:
    """Return an image that was requested before; without `Prefer`, answer without waiting."""
    await run_in_threadpool(check_job, caller, job)
    return await _wait(caller, job, _seconds(prefer) if prefer else 0.0)


def _seconds(prefer: str | None) -> float:
    match = re.search(r"\bwait=(\d{1,6})", prefer or "")
    return min(MAX_WAIT_SECONDS, float(match[1])) if match else WAIT_SECONDS


@seated
async def _wait(caller: Caller, job: str, seconds: float) -> Response:
    deadline = time.monotonic() + seconds
    while (response := await run_in_threadpool(_answer, caller, job)) is None:
        if time.monotonic() >= deadline:
            headers = {"Location": f"/v1/images/{job}", "Retry-After": "1"}
            return Response(status_code=202, headers=headers)
        await sleep(POLL_SECONDS)
    return response


def _answer(caller: Caller, job: str) -> Response | None:
    ended = caller.ledger.result(job)
    if ended is None:
        return None
    image = (ended.result or {}).get("image")
    if ended.state != "done" or image is None:
        why = "; ".join(ended.failed.values()) or f"its job is {ended.state}"
        raise ProblemError(422, "image-failed", f"no image was made: {hide_paths(why)}")
    picture = caller.store.get(str(image))
    headers = {"Content-Location": f"/v1/images/{job}", "Cache-Control": "private, max-age=86400"}
    return Response(picture, media_type="image/png", headers=headers)


def _submit(caller: Caller, body: ImageBody) -> str:
    request, inputs = _resolve(caller.store, body)
    job = caller.ledger.identify(request)
    ended = caller.ledger.result(job)
    if ended is None or ended.state != "done":
        caller.spend("images", 1)
        for data in inputs:
            caller.store.put(input_key(data), data)
        caller.submit(request, job)
    return job


def _resolve(store: Store, body: ImageBody) -> tuple[ImageRequest, list[bytes]]:
    """Check the body against the model; return the request and the PNGs that it names by hash."""
    with blaming("#/model"):
        model = read_model(store, ModelRef(body.model, body.version))
    with Pictures(model.size) as pictures:
        with blaming("#/labels"):
            labels = encode_png(_read_label_map(body.labels, model, pictures))
        inputs, crops, sides = [labels], [], []
        for number, item in enumerate(body.crops):
            with blaming(f"#/crops/{number}"):
                crop, pixels, side = _crop(store, item, model, pictures)
                crops.append(crop)
                sides.append(side)
                inputs += [pixels] if pixels is not None else []
    with blaming("#/crops"):
        _check_tokens(store, model, sides)
    options = body.model_dump(include={"model", "version", "seed", *SamplingChoice.model_fields})
    request = ImageRequest(image="none", labels=input_key(labels), crops=tuple(crops), **options)
    with blaming("#/steps"):
        request.sampling(model)
    name = sha256(request.model_dump_json().encode())[:32]
    return request.model_copy(update={"image": name}), inputs


def _check_tokens(store: Store, model: ModelRecord, sides: list[int]) -> None:
    """Check crops of these sides (pixels) against the model's TensorRT plan, if it has one."""
    in_use = [each for each in deployments(store, model.model) if each.version == model.version]
    if in_use and sides and (limit := in_use[-1].max_tokens) is not None:
        enlarged = int(model.size * model.recipe.denoiser.crop_max)
        check_crops(len(sides), max(*sides, enlarged), in_use[-1].factor, limit)


def _crop(
    store: Store, item: CropBody, model: ModelRecord, pictures: Pictures
) -> tuple[GivenCrop, bytes | None, int]:
    """Return a crop, its PNG if the body has one, and its largest possible side in pixels."""
    if item.tissue not in model.classes.names[model.classes.first :]:
        raise InputError(
            f"{model.ref} has no tissue {item.tissue!r}; "
            f"it knows {model.classes.names[model.classes.first :]}"
        )
    label = model.classes.index(item.tissue)
    if item.png is None:
        store.get_model(region_set_key(str(item.regions)), RegionSet)
        given = GivenCrop(label=label, regions=item.regions, region=item.region)
        return given, None, int(model.size * model.recipe.denoiser.crop_max)
    crop = read_crop(item.png, model.size, pictures)
    pixels = encode_png(crop)
    return GivenCrop(label=label, pixels=input_key(pixels)), pixels, len(crop)


def _read_label_map(data: bytes, model: ModelRecord, pictures: Pictures) -> UInt8:
    """Decode a PNG of a label map to uint8 (size, size). Raises `InputError` if it is unfit."""
    mode, labels = pictures.read(data)
    height, width = labels.shape[:2]
    if (width, height) != (model.size, model.size) or mode not in GREY:
        raise InputError(
            f"the label map has mode {mode} and {width}×{height} px: send class indices (grey or "
            f"palette) of {model.size}×{model.size} px, the size of {model.model}"
        )
    if labels.max() >= len(model.classes):
        raise InputError(
            f"the label map holds {labels.max()}; the model's labels are 0 to "
            f"{len(model.classes) - 1}: {', '.join(model.classes.names)}"
        )
    return labels
