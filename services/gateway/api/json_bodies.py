"""JSON bodies: read once the caller is known, and parsed beside the event loop."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

from anyio import to_thread
from fastapi import Request, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from services.gateway.api.problems import ProblemError
from services.gateway.api.turns import Threads, TurnRoute
from shared.errors import quoted

T = TypeVar("T")

MAX_VALUES = 100_000
"""Number of values in a body. In memory, each may need a hundred times its size in the body."""

MAX_FAULTS = 1000
"""Number of wrong fields that are looked at: to collect them takes longer than to parse a body."""

PARSING = 2
"""Number of bodies that are parsed at the same time."""

READING_PER_SENDER = 8
"""Number of bodies of one token that are read at the same time; further ones wait unread."""

_parsing = Threads(PARSING)


class JsonRoute(TurnRoute):
    """A route that reads its JSON body when its other dependencies, such as the token, are solved.

    FastAPI alone reads and parses it before them, on the event loop. Its description of the route
    stays as it is.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with the body as its last dependency."""
        route = self.effective()
        given, field = route.dependant, route.body_field
        if field is None or isinstance(field.field_info, Form):
            return super().get_route_handler()
        (body,) = given.body_params
        kind: TypeAdapter[Any] = TypeAdapter(cast("type", body.field_info.annotation))
        last = get_dependant(path="", call=_reader(kind), name=body.name)
        route.dependant = replace(given, body_params=[], dependencies=[*given.dependencies, last])
        route.body_field = None
        try:
            return super().get_route_handler()
        finally:
            route.dependant, route.body_field = given, field


def _reader(kind: TypeAdapter[T]) -> Callable[[Request], Awaitable[T]]:
    """Make a dependency that reads the body of a request as a value of a type."""

    async def read(request: Request) -> T:
        async with taking(request):
            return await validated(kind, await json_of(request))

    return read


@asynccontextmanager
async def taking(request: Request) -> AsyncIterator[None]:
    """Wait until it is the sender's turn to have a body read.

    Raises:
        ProblemError: the body ended early (400).
    """
    async with _parsing.of(READING_PER_SENDER, request.state.sender.token):
        try:
            yield
        except ClientDisconnect as error:
            raise ProblemError(400, "broken-off", "the body broke off") from error


def media_type(request: Request) -> str:
    """Return the media type of a request's body, without parameters; "" if it names none."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def json_of(request: Request, *others: str) -> bytes:
    """Read a body of JSON. The request does not keep it.

    Args:
        request: the request.
        others: further media types that the operation takes, for the message.

    Raises:
        ProblemError: the body is of another type (422).
    """
    kind = media_type(request)
    if kind != "application/json":
        raise ProblemError(
            422,
            "invalid",
            f"a body of {kind or 'no type'} is not understood here",
            remedy=f"send {' or '.join(('application/json', *others))}, and say so in Content-Type",
        )
    return b"".join([part async for part in request.stream()])


async def validated(kind: TypeAdapter[T], data: bytes) -> T:
    """Call `parse` in one of few threads."""
    return await to_thread.run_sync(parse, kind, data, limiter=_parsing.threads)


def parse(kind: TypeAdapter[T], data: bytes) -> T:
    """Parse JSON as a value of a type.

    Raises:
        ProblemError: it holds too many values (422), or more than `MAX_FAULTS` fields are wrong.
        RequestValidationError: it is no JSON, or a field is wrong.
    """
    if not data:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "no body"}])
    check_values(data)
    with suppress(ValueError, RecursionError):  # it is no JSON, which its parser explains
        json.loads(data, object_pairs_hook=named_once)
    try:
        return kind.validate_json(data)
    except ValidationError as error:
        if error.error_count() > MAX_FAULTS:
            raise ProblemError(
                422,
                "invalid",
                f"{error.error_count()} fields of the body are wrong",
                remedy="send a short body of the same form: the answer to it names its fields",
            ) from error
        items = error.errors(include_url=False)
        raise RequestValidationError(
            [item | {"loc": ("body", *item["loc"])} for item in items]
        ) from error


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its fields, for `json.loads`.

    Raises:
        ProblemError: it has a field twice, of which one would be dropped (422).
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ProblemError(422, "invalid", f"the body has {quoted(twice)} twice: send it once")
    return found


def check_values(data: bytes) -> None:
    """Count what begins or parts values in JSON, before it is parsed.

    Raises:
        ProblemError: there may be more than `MAX_VALUES` (422).
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ProblemError(
            422,
            "invalid",
            f"the body holds more than {MAX_VALUES} values",
            remedy="send several requests",
        )
