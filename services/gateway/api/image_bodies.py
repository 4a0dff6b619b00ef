"""The body of an image request: JSON with PNGs in base64, or a form with PNGs as files."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from services.gateway.api.json_bodies import (
    check_values,
    json_of,
    media_type,
    named_once,
    taking,
    validated,
)
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


_BODY: TypeAdapter[ImageBody] = TypeAdapter(ImageBody)
_FORM = "multipart/form-data"


async def read_image_body(request: Request) -> ImageBody:
    """Read the body of a request for an image.

    Raises:
        ProblemError: the body ended early (400), or is neither JSON nor a valid form (422).
        RequestValidationError: a field is wrong.
    """
    async with taking(request):
        if media_type(request) != _FORM:
            return await validated(_BODY, await json_of(request, _FORM))
        async with request.form(max_files=MAX_CROPS + 1, max_fields=1) as form:
            labels, crops = [await _files(form, name) for name in ("labels", "crops")]
            text = form.get("request")
        if not isinstance(text, str) or len(labels) != 1:
            raise ProblemError(
                422, "invalid", "the form needs one text `request` and one file `labels`"
            )
        return await validated(_BODY, await run_in_threadpool(_insert, text, labels[0], crops))


def _insert(text: str, labels: bytes, crops: list[bytes]) -> bytes:
    """Insert the files of a form, in base64, into the JSON of its part `request`; return that."""
    check_values(text.encode())
    try:
        fields = json.loads(text, object_pairs_hook=named_once)
        given = {"png", "regions", "region"}
        unfilled = [crop for crop in fields.get("crops", []) if not given & crop.keys()]
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ProblemError(
            422,
            "invalid",
            "`request` must be a JSON object of fields, and `crops` in it a list of such objects",
        ) from error
    if len(unfilled) != len(crops):
        raise ProblemError(
            422,
            "invalid",
            f"{len(unfilled)} crops of `request` need a file, but the form has "
            f"{len(crops)} files `crops`",
        )
    fields["labels"] = b64encode(labels).decode()
    for crop, png in zip(unfilled, crops, strict=True):
        crop["png"] = b64encode(png).decode()
    return json.dumps(fields).encode()


async def _files(form: FormData, name: str) -> list[bytes]:
    """Return the files of a form that have a field name."""
    return [await file.read() for file in form.getlist(name) if isinstance(file, UploadFile)]
