"""/v1/edits: paint into an image, or draw it again, while the client waits."""

from __future__ import annotations

from fastapi import APIRouter, Response

from services.gateway.api.access import Caller, MayGenerate
from services.gateway.api.body_sizes import MAX_IMAGE_BYTES
from services.gateway.api.given_pictures import Pictures
from services.gateway.api.image_jobs import (
    PICTURE,
    Prefer,
    given_crop,
    seconds_of,
    submit_image,
    wait_for_image,
)
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.problems import blaming, documented
from services.gateway.api.turns import decoded
from shared.contracts.gateway import EditBody
from shared.contracts.image import (
    MAX_EDIT_SIDE,
    RESTAINING,
    Edit,
    ImageRequest,
    input_key,
)
from shared.contracts.synthesize import SamplingChoice
from shared.datasets.edits import check_edit
from shared.datasets.field_inputs import read_area, read_labels
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.models import pinned, read_model
from shared.storage import Store

router = APIRouter(prefix="/v1/edits", tags=["images"], route_class=JsonRoute)


@router.post(
    "",
    response_class=Response,
    max_body_size=MAX_IMAGE_BYTES,
    responses=documented(404) | PICTURE,
)
async def edit_image(body: EditBody, caller: MayGenerate, prefer: Prefer = None) -> Response:
    """Edit an image; afterwards it is one of `/v1/images`."""
    job = await decoded(caller, _submit, caller, body)
    return await wait_for_image(caller, job, seconds_of(prefer))


def _submit(caller: Caller, body: EditBody) -> str:
    return submit_image(caller, *_resolve(caller.store, body))


def _resolve(store: Store, body: EditBody) -> tuple[ImageRequest, list[bytes], int]:
    """Check the body; return the request, the PNGs it names by hash, and the images it costs."""
    with blaming("#/model"):
        body = pinned(store, body)
        model = read_model(store, body.model_ref)
    crops, inputs, area = [], [], None
    with Pictures(MAX_EDIT_SIDE) as pictures:
        with blaming("#/image"):
            image = pictures.read_image(body.image)
            if image.turn != 1:
                raise InputError(
                    f"it states the EXIF orientation {image.turn}, so how the label map lies is "
                    "unknown: send it upright, without this tag"
                )
        with blaming("#/labels"):
            labels = read_labels(pictures.open_mask(body.labels, "labels"), model)
        if body.area is not None:
            with blaming("#/area"):
                area = read_area(pictures.open_mask(body.area, "area"))
        for number, item in enumerate(body.crops):
            with blaming(f"#/crops/{number}"):
                crop, png, _ = given_crop(store, item, model, pictures)
                crops.append(crop)
                inputs += [png] if png is not None else []
    with blaming("#"):
        check_edit(model, image.pixels, labels, area, [crop.label for crop in crops])
    pngs = [encode_png(image.pixels), encode_png(labels)]
    pngs += [] if area is None else [encode_png(area.astype("uint8"))]
    edit = Edit(
        image=input_key(pngs[0]),
        area=None if area is None else input_key(pngs[2]),
        border=body.border,
        restain=body.action == "restain",
        strength=body.strength,
    )
    usual = RESTAINING if edit.restain else 0.0
    staining = usual if body.staining is None else body.staining
    options = body.model_dump(include={"model", "version", "seed", *SamplingChoice.model_fields})
    request = ImageRequest(
        image="none",
        labels=input_key(pngs[1]),
        crops=tuple(crops),
        edit=edit,
        **options | {"staining": staining},
    )
    with blaming("#/steps"):
        request.sampling(model)
    return request, pngs + inputs, -(-labels.size // model.size**2)
