"""Errors as problem documents (RFC 9457): what was wrong, which field, what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from minio.error import MinioException
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from urllib3.exceptions import HTTPError

from shared.errors import HeteroTissueError, InputError
from shared.storage import ObjectNotFoundError

MEDIA_TYPE = "application/problem+json"
TYPES = "urn:heterotissue:problem:"

log = logging.getLogger(__name__)


class FieldError(BaseModel):
    """One field that was wrong."""

    detail: str
    pointer: str | None = Field(None, description="JSON pointer into the body")
    parameter: str | None = Field(None, description="name of a path, query or header parameter")


class ProblemDetails(BaseModel):
    """A problem document."""

    type: str = Field(description="names the kind of problem; the same for all of its kind")
    title: str
    status: int
    detail: str
    remedy: str | None = Field(None, description="what to do about it")
    errors: list[FieldError] = Field(default_factory=list)


class ProblemError(HeteroTissueError):
    """Ends a request with a problem document.

    Args:
        status: HTTP status.
        kind: short name of the kind of problem.
        detail: what was wrong, for a person.
        remedy: what to do about it.
        pointer: JSON pointer to the field of the body that was wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        remedy: str | None = None,
        pointer: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        errors = [FieldError(detail=detail, pointer=pointer)] if pointer is not None else []
        self.details = _details(status, kind, detail, remedy, errors)
        self.headers = dict(headers or {})


def _details(
    status: int,
    kind: str,
    detail: str,
    remedy: str | None = None,
    errors: Sequence[FieldError] = (),
) -> ProblemDetails:
    return ProblemDetails(
        type=TYPES + kind,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        remedy=remedy,
        errors=list(errors),
    )


def answer(details: ProblemDetails, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Make the response of a problem."""
    return JSONResponse(
        details.model_dump(exclude_none=True), details.status, headers, media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(ProblemError)
    async def _problem(_: Request, error: ProblemError) -> JSONResponse:
        return answer(error.details, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_explained(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        detail = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.url.path} does not take {request.method}"
        remedy = "see /openapi.json for what there is" if error.status_code in {404, 405} else None
        return answer(_details(error.status_code, kind, detail, remedy), error.headers)

    @app.exception_handler(ObjectNotFoundError)
    async def _missing(_: Request, error: ObjectNotFoundError) -> JSONResponse:
        return answer(_details(404, "not-found", f"there is no {error.key!r}"))

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> JSONResponse:
        return answer(_details(422, "invalid", str(error)))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(_details(500, "internal", "an error of ours; the gateway's log has it"))

    async def _unavailable(_: Request, error: Exception) -> JSONResponse:
        log.error("a server that the gateway needs does not answer: %s", error)
        detail = "the store or the queue does not answer"
        return answer(
            _details(503, "unavailable", detail, "try again in a few seconds"), {"Retry-After": "5"}
        )

    for kind in (MinioException, HTTPError, RedisError):
        app.add_exception_handler(kind, _unavailable)


def _explained(error: RequestValidationError) -> ProblemDetails:
    errors = error.errors()
    if any(item["type"] == "json_invalid" for item in errors):
        return _details(400, "malformed", "the body is not JSON", "send an object of JSON")
    fields = [_field(item) for item in errors]
    places = [field.pointer or field.parameter or "the request" for field in fields]
    detail = "; ".join(f"{at}: {field.detail}" for at, field in zip(places, fields, strict=True))
    return _details(422, "invalid", detail, "mend the fields named in `errors`", fields)


def _field(item: Mapping[str, Any]) -> FieldError:
    place, *path = item["loc"]
    if place == "body":
        return FieldError(detail=item["msg"], pointer=pointer(*path))
    return FieldError(detail=item["msg"], parameter=str(path[0]) if path else str(place))


def pointer(*path: str | int) -> str:
    """Make a JSON pointer (RFC 6901, as a fragment)."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "#" + "".join(f"/{part}" for part in parts)


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Blame an `InputError` of the block on a field of the body, by its JSON pointer."""
    try:
        yield
    except InputError as error:
        detail = f"there is no {error.key!r}" if isinstance(error, ObjectNotFoundError) else error
        raise ProblemError(422, "invalid", str(detail), pointer=field) from error


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document that an operation may end in problems of these statuses."""
    reference = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": reference}},
        }
        for status in statuses
    }


def returning(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Document that an operation returns a file of a media type."""
    schema = {"type": "string", "format": "binary"}
    if media_type.startswith("text/"):
        schema = {"type": "string"}
    elif media_type.endswith("json"):
        schema = {"type": "object"}
    return {200: {"content": {media_type: {"schema": schema}}}}
