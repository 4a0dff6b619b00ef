"""The body of an image request: JSON with PNGs in base64, or a form with PNGs as files."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from services.gateway.api.problems import ProblemError
from shared.contracts.gateway import MAX_CROPS, ImageBody

_FILE = {"type": "string", "format": "binary"}

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ImageBody"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["request", "labels"],
                    "properties": {
                        "request": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "an ImageBody without the pictures that are files",
                        },
                        "labels": _FILE,
                        "crops": {
                            "type": "array",
                            "items": _FILE,
                            "maxItems": MAX_CROPS,
                            "description": "PNGs of the crops in `request` that have neither "
                            "`png` nor a region, in order",
                        },
                    },
                }
            },
        },
    }
}
"""OpenAPI description of an operation that reads its body with `read_image_body`."""


async def read_image_body(request: Request) -> ImageBody:
    """Read the body of a request for an image.

    Raises:
        ProblemError: the body ended early (400), or is neither JSON nor a valid form (422).
        RequestValidationError: a field is wrong.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            async with request.form(max_files=MAX_CROPS + 1, max_fields=1) as form:
                data = await _insert_files(form)
        elif kind == "application/json":
            data = await request.body()
        else:
            raise ProblemError(
                422,
                "invalid",
                f"a body of {kind or 'no type'} is not understood here",
                remedy="send application/json or multipart/form-data, and say so in Content-Type",
            )
    except ClientDisconnect as error:
        raise ProblemError(400, "broken-off", "the body broke off") from error
    return await run_in_threadpool(_validate, data)


def _validate(data: bytes) -> ImageBody:
    try:
        return ImageBody.model_validate_json(data)
    except ValidationError as error:
        items = error.errors(include_url=False, include_input=False)
        raise RequestValidationError(
            [item | {"loc": ("body", *item["loc"])} for item in items]
        ) from error


async def _insert_files(form: FormData) -> bytes:
    """Insert the files of a form, in base64, into the JSON of its part `request`; return that."""
    files = {name: await _files(form, name) for name in ("labels", "crops")}
    text = form.get("request")
    if not isinstance(text, str) or len(files["labels"]) != 1:
        raise ProblemError(
            422, "invalid", "the form needs one text `request` and one file `labels`"
        )
    try:
        fields = json.loads(text)
        crops = fields.get("crops", [])
        unfilled = [crop for crop in crops if not {"png", "regions", "region"} & set(crop)]
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ProblemError(422, "invalid", "`request` must be a JSON object of fields") from error
    if len(unfilled) != len(files["crops"]):
        raise ProblemError(
            422,
            "invalid",
            f"{len(unfilled)} crops of `request` need a file, but the form has "
            f"{len(files['crops'])} files `crops`",
        )
    fields["labels"] = files["labels"][0]
    for crop, png in zip(unfilled, files["crops"], strict=True):
        crop["png"] = png
    return json.dumps(fields).encode()


async def _files(form: FormData, name: str) -> list[str]:
    """Return the files of a form that have a field name, in base64."""
    files = [part for part in form.getlist(name) if isinstance(part, UploadFile)]
    return [b64encode(await file.read()).decode() for file in files]
