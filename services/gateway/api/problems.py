"""Errors as problem documents (RFC 9457), which name the error, the field and the remedy."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from minio.error import MinioException
from pydantic import BaseModel, Field, ValidationError
from redis.exceptions import RedisError, ResponseError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from urllib3.exceptions import HTTPError

from shared.contracts.explaining import describe
from shared.errors import CancelledError, HeteroTissueError, InputError
from shared.jobs import NameTakenError, UnreadableRecordError
from shared.jobs.records import JobNotFoundError
from shared.storage import DamagedObjectError, KeyTakenError, ObjectNotFoundError, is_fault

MEDIA_TYPE = "application/problem+json"
TYPES = "urn:heterotissue:problem:"

FULL = {errno.ENOSPC, errno.EDQUOT, "XMinioStorageFull", "InsufficientStorage", "QuotaExceeded"}
"""Numbers and codes of errors of a store that is full."""

CLASHES = {"XMinioObjectExistsAsDirectory", "XMinioParentIsObject"}
"""Codes of S3 servers that keep objects as files."""

MAX_ERRORS = 20
"""Number of wrong fields of a request that the answer names."""

MAX_STEP = 200
"""Number of characters of a field's name that the answer repeats."""

DENIED = {errno.EACCES, errno.EPERM}

log = logging.getLogger(__name__)


class FieldError(BaseModel):
    """An error in one field or parameter of a request."""

    detail: str
    pointer: str | None = Field(None, description="JSON pointer into the body")
    parameter: str | None = Field(None, description="name of a path, query or header parameter")


class ProblemDetails(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="URN of the kind of problem")
    title: str
    status: int
    detail: str
    remedy: str | None = Field(None, description="advice on how to solve the problem")
    errors: list[FieldError] = Field(default_factory=list)


class ProblemError(HeteroTissueError):
    """An error that ends a request with a problem document.

    Args:
        status: HTTP status.
        kind: short name of the kind of problem.
        detail: explanation of the problem, for people.
        remedy: advice on how to solve the problem.
        pointer: JSON pointer to the wrong field of the body.
        headers: additional headers of the answer.
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


def absent(kind: str, name: str, remedy: str) -> ProblemError:
    """Return the problem (404) that nothing of a kind, such as "job", has this name."""
    return ProblemError(404, f"no-{kind}", f"there is no {kind} {name!r}", remedy=remedy)


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


def answer(details: ProblemDetails, headers: Mapping[str, str] | None = None) -> Response:
    """Make the HTTP response for a problem document."""
    text = json.dumps(details.model_dump(exclude_none=True), ensure_ascii=False)
    # What a client sent may hold halves of characters, which are escaped.
    body = text.encode(errors="backslashreplace")
    return Response(body, details.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(ProblemError)
    async def _problem(_: Request, error: ProblemError) -> Response:
        return answer(error.details, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        return answer(_explain(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        detail = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.url.path} does not take {request.method}"
        remedy = "/openapi.json lists all operations" if error.status_code in {404, 405} else None
        headers = dict(error.headers or {})
        if "Allow" in headers:  # of the first route of the path alone
            headers["Allow"] = ", ".join(_methods(request))
        return answer(_details(error.status_code, kind, detail, remedy), headers)

    @app.exception_handler(ObjectNotFoundError)
    async def _missing(_: Request, error: ObjectNotFoundError) -> Response:
        return answer(_details(404, "not-found", f"there is no {error.key!r}"))

    @app.exception_handler(NameTakenError)
    async def _taken(request: Request, error: NameTakenError) -> Response:
        route = request.scope.get("route")
        options = route.dependant.query_params if isinstance(route, APIRoute) else []
        replaces = "replace" in {option.name for option in options}
        other = "add ?replace=true" if replaces else "delete what has this one"
        remedy = f"choose another name, or {other}"
        return answer(_details(409, "name-taken", hide_paths(error.wrong), remedy))

    @app.exception_handler(KeyTakenError)
    async def _clash(_: Request, error: KeyTakenError) -> Response:
        return answer(_details(409, "key-taken", str(error)))

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> Response:
        return answer(_details(422, "invalid", hide_paths(str(error))))

    @app.exception_handler(DamagedObjectError)
    async def _damaged(_: Request, error: DamagedObjectError) -> Response:
        log.error("%s", error)
        why = hide_paths(error.why)
        detail = f"{error.key} of the store is damaged, or of another version: {why}"
        remedy = f"{error.remedy or 'send the request that made it again'}, or restore a backup"
        return answer(_details(409, "unreadable", detail, remedy))

    @app.exception_handler(UnreadableRecordError)
    async def _lost(_: Request, error: UnreadableRecordError) -> Response:
        log.error("%s", error)
        return answer(_details(409, "unreadable", hide_paths(str(error))))

    @app.exception_handler(JobNotFoundError)
    async def _gone(_: Request, error: JobNotFoundError) -> Response:
        remedy = "GET /v1/jobs lists those there are"
        return answer(_details(404, "no-job", hide_paths(str(error)), remedy))

    @app.exception_handler(CancelledError)
    async def _changed(_: Request, error: CancelledError) -> Response:
        detail = f"job {error} was deleted or submitted again at this moment"
        return answer(_details(409, "changed", detail, "look at it, and send the request again"))

    @app.exception_handler(ValidationError)
    async def _unreadable(_: Request, error: ValidationError) -> Response:
        log.error("a record in the store cannot be read: %s", error)
        detail = f"a record in the store ({error.title}) is damaged, or of another version"
        return answer(_details(409, "unreadable", detail, "restore it from a backup"))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> Response:
        return answer(_details(500, "internal", "the gateway failed; its log has the error"))

    async def _unavailable(_: Request, error: Exception) -> Response:
        log.error("a server that the gateway needs does not answer: %s", error)
        what = "the queue" if isinstance(error, RedisError) else "the store"
        full = isinstance(error, ResponseError)  # such as OOM and MISCONF: no address is in these
        detail = f"{what} takes nothing: {error}" if full else f"{what} does not answer"
        return answer(
            _details(503, "unavailable", detail, "try again in a few seconds"), {"Retry-After": "5"}
        )

    async def _store(request: Request, error: Exception) -> Response:
        cause = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
        if cause in FULL:
            log.error("the store or this machine's disk is full: %s", error)
            details = _details(507, "full", "there is no room left", "have room made")
            return answer(details, {"Retry-After": "60"})
        if cause in CLASHES:
            detail = "one name would be a file and a folder of files"
            return answer(_details(409, "key-taken", detail, "choose another name"))
        if cause == errno.ENAMETOOLONG:
            return answer(_details(422, "invalid", "a name is too long", "choose a shorter one"))
        if isinstance(error, OSError) and cause not in DENIED and not is_fault(error):
            raise error
        return await _unavailable(request, error)

    app.add_exception_handler(HTTPError, _unavailable)
    app.add_exception_handler(RedisError, _unavailable)
    app.add_exception_handler(MinioException, _store)
    app.add_exception_handler(OSError, _store)


def _methods(request: Request) -> list[str]:
    """Return the methods that the path of a request takes."""
    own = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches(dict(request.scope) | {"method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
    return ["HEAD", *own] if "GET" in own else own


def _explain(error: RequestValidationError) -> ProblemDetails:
    errors = error.errors()
    if any(item["type"] == "json_invalid" for item in errors):
        return _details(400, "malformed", "the body is not JSON", "send a JSON object")
    fields = [_field(item) for item in errors[:MAX_ERRORS]]
    lines = [f"{at.pointer or at.parameter or 'the request'}: {at.detail}" for at in fields]
    more = len(errors) - len(fields)
    detail = "; ".join(lines) + (f"; and {more} more" if more else "")
    return _details(422, "invalid", detail, "correct the fields in `errors`", fields)


def _field(item: Mapping[str, Any]) -> FieldError:
    place, *path = item["loc"]
    if place == "body":
        return FieldError(detail=describe(item), pointer=pointer(*path))
    return FieldError(detail=describe(item), parameter=str(path[0]) if path else str(place))


def pointer(*path: str | int) -> str:
    """Make a JSON pointer from the steps of a path (RFC 6901, as a URI fragment)."""
    parts = (str(part)[:MAX_STEP].replace("~", "~0").replace("/", "~1") for part in path)
    return "#" + "".join(f"/{part}" for part in parts)


_PART = r"(?:\([^()/\n'\"]*\)|(?<=\w)'(?=\w)|(?![.,] )[^/\n'\"<>|;:()])+"
"""A folder's name in a message; it may have blanks, and ends where a sentence does."""

_QUOTED = re.compile(r"(['\"])(?:file://)?/(?:(?:(?!\1)[^\n])*/)?((?:(?!\1)[^/\n])*)\1")
_PATH = re.compile(rf"(?:(?<![\w:/.\\])|(?<=file://))/(?:{_PART}/)+([^\s/'\"<>|;,:()]*)")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\(?:[^\\\n'\"<>|;:]+\\)*([^\s\\'\"<>|;,:()]*)")


def hide_paths(text: str) -> str:
    """Leave the last name of each absolute path in a message: the rest is the server's affair.

    A path with blanks that is not quoted may take words with it, up to the last slash of its
    sentence.
    """
    for pattern, kept in ((_QUOTED, r"\1…/\2\1"), (_PATH, r"…/\1"), (_WINDOWS, r"…/\1")):
        text = pattern.sub(kept, text)
    return text


def without_paths(value: Any) -> Any:
    """Hide the absolute paths in all keys and texts of a JSON value."""
    if isinstance(value, str):
        return hide_paths(value)
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        shown = f"…/{PurePath(key).name}" if PurePath(key).is_absolute() else hide_paths(key)
        name, number = shown, 2
        while name in found:
            name, number = f"{shown} ({number})", number + 1
        found[name] = without_paths(item)
    return found


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """Turn an `InputError` of the block into a problem that names a field of the body.

    Args:
        field: JSON pointer to the field.

    Raises:
        ProblemError: the block raised an `InputError` (422).
    """
    try:
        yield
    except InputError as error:
        detail = hide_paths(str(error))
        if isinstance(error, ObjectNotFoundError):
            detail = f"there is no {error.key!r}"
        raise ProblemError(422, "invalid", detail, pointer=field) from error


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation that may answer problems of these statuses."""
    reference = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": reference}},
        }
        for status in statuses
    }


def returning(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation that answers with a file of a media type."""
    schema = {"type": "string", "format": "binary"}
    if media_type.startswith("text/"):
        schema = {"type": "string"}
    elif media_type.endswith("json"):
        schema = {"type": "object"}
    return {200: {"content": {media_type: {"schema": schema}}}}
