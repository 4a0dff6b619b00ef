"""Jobs of single images: submitting them, and waiting for their image."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

from anyio import sleep
from fastapi import Header, Response
from starlette.concurrency import run_in_threadpool

from services.gateway.api.access import Caller
from services.gateway.api.given_pictures import Pictures, read_crop
from services.gateway.api.problems import ProblemError, hide_paths
from services.gateway.api.streams import read_made
from services.gateway.api.turns import seated
from shared.contracts.gateway import CropBody
from shared.contracts.image import GivenCrop, ImageRequest, input_key
from shared.contracts.jobs import JobResult
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet, region_set_key
from shared.datasets.field_inputs import find_tissue
from shared.datasets.samples import check_fit
from shared.imaging.codec import encode_png
from shared.storage import DamagedObjectError, Store, sha256

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


def seconds_of(prefer: str | None) -> float:
    """Return how long a request waits for its image, s."""
    match = re.search(r"\bwait=(\d{1,6})", prefer or "")
    return min(MAX_WAIT_SECONDS, float(match[1])) if match else WAIT_SECONDS


@seated
async def wait_for_image(caller: Caller, job: str, seconds: float) -> Response:
    """Wait for the image of a job; answer 202 if it takes longer."""
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
    picture = _picture(caller, job, str(image))
    headers = {"Content-Location": f"/v1/images/{job}", "Cache-Control": "private, max-age=86400"}
    return Response(picture, media_type="image/png", headers=headers)


def _picture(caller: Caller, job: str, image: str) -> bytes:
    """Return the image of a job that is done. Raises as `read_made` does."""
    return read_made(caller.store, image, caller.ledger.marker(job, "image").outputs[image])


def _is_whole(caller: Caller, job: str, ended: JobResult) -> bool:
    try:
        return bool(_picture(caller, job, str((ended.result or {}).get("image"))))
    except DamagedObjectError:
        return False


def submit_image(
    caller: Caller, request: ImageRequest, inputs: Sequence[bytes], images: int = 1
) -> str:
    """Submit a request for an image, which is named by its content; return the job.

    Args:
        caller: sender of the request.
        request: the request.
        inputs: the PNGs that the request names by their hash; they count as uploaded.
        images: number of the model's images that have as many pixels.

    Raises:
        ProblemError: less is left of a quota (429).
    """
    name = sha256(request.model_dump_json().encode())[:32]
    request = request.model_copy(update={"image": name})
    identity = caller.ledger.identity(request)
    job = identity.job
    ended = caller.ledger.result(job)
    done = ended is not None and ended.state == "done" and _is_whole(caller, job, ended)
    if done or caller.ledger.is_open(job):
        return job
    with (
        caller.spending("images", images),
        caller.spending("upload_bytes", sum(map(len, inputs))),
    ):
        for data in inputs:
            caller.store.put(input_key(data), data)
        return caller.submit(request, identity)


def given_crop(
    store: Store, item: CropBody, model: ModelRecord, pictures: Pictures
) -> tuple[GivenCrop, bytes | None, int]:
    """Return a crop, its PNG if the body has one, and its largest possible side in pixels.

    Raises:
        InputError: the model has no such class, or the picture or the region set is unfit.
        ObjectNotFoundError: there is no such region set.
    """
    label = find_tissue(item.tissue, model).index
    if item.png is None:
        side = int(model.size * model.recipe.denoiser.crop_max)
        return region_crop(store, item, model), None, side
    crop = read_crop(item.png, model, pictures)
    pixels = encode_png(crop)
    return GivenCrop(label=label, pixels=input_key(pixels)), pixels, len(crop)


def region_crop(store: Store, item: CropBody, model: ModelRecord) -> GivenCrop:
    """Return a crop of a region.

    Raises:
        InputError: the model has no such class, or the region set does not fit it.
        ObjectNotFoundError: there is no such region set.
    """
    label = find_tissue(item.tissue, model).index
    check_fit(store.get_model(region_set_key(str(item.regions)), RegionSet), model)
    return GivenCrop(label=label, regions=item.regions, region=item.region)
