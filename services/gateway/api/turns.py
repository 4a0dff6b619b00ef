"""Turns of tenants: what is slow for one of them leaves threads for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.routing import APIRoute, _effective_route_context_var

from services.gateway.api.access import Caller, Sender
from services.gateway.api.problems import ProblemError

T = TypeVar("T")
P = ParamSpec("P")

DECODING = 8
"""Number of requests whose pictures are decoded at the same time, in a process each."""

DECODING_PER_TENANT = 2
"""Number of those that may be of one tenant."""

QUEUED_PER_TENANT = 32
"""Number of further ones that may wait, with their bodies in memory."""

ANSWERED_PER_TENANT = 16
"""Number of requests of a tenant that may hold threads of those, 40, that all requests share."""

WAITING_PER_TOKEN = 32
"""Number of requests of one token that may wait for an image."""


class Turns:
    """Turns of a kind of requests; they wait for them without a thread."""

    def __init__(self) -> None:
        self._some: WeakValueDictionary[tuple[str, ...], CapacityLimiter] = WeakValueDictionary()

    def of(self, most: int, *key: str) -> CapacityLimiter:
        """Return the limiter of what is named by a key, such as a tenant's store."""
        return self._some.get(key) or self._some.setdefault(key, CapacityLimiter(most))


class Threads(Turns):
    """Threads of their own for a kind of requests, and their turns.

    Args:
        threads: number of requests that run at the same time.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = CapacityLimiter(threads)


_decoding = Threads(DECODING)


async def decoded(
    caller: Caller, work: Callable[P, T], *arguments: P.args, **options: P.kwargs
) -> T:
    """Run what decodes the pictures of a request, when it is the turn of the caller's tenant.

    Raises:
        ProblemError: too many requests of the tenant are waiting (429).
    """
    own = _decoding.of(DECODING_PER_TENANT, caller.store.url)
    if own.statistics().tasks_waiting >= QUEUED_PER_TENANT:
        raise ProblemError(
            429,
            "rate-limited",
            f"{QUEUED_PER_TENANT} requests with pictures of this tenant are waiting",
            remedy="send the next ones when these are answered",
            headers={"Retry-After": "5"},
        )
    async with own:
        return await to_thread.run_sync(
            partial(work, *arguments, **options), limiter=_decoding.threads
        )


_answering = Turns()


async def _its_turn(request: Request) -> AsyncIterator[None]:
    sender: Sender | None = getattr(request.state, "sender", None)  # some pages are anyone's
    if sender is None:
        yield
        return
    async with _answering.of(ANSWERED_PER_TENANT, sender.tenant):
        yield


class TurnRoute(APIRoute):
    """A route whose function, if it takes a thread, waits for a turn of its sender's tenant."""

    def effective(self) -> Any:
        """Return what describes this route: while its router is included, FastAPI's context."""
        context: Any = _effective_route_context_var.get()
        return context if context and context.original_route is self else self

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with the turn as its last dependency."""
        route = self.effective()
        given = route.dependant
        if iscoroutinefunction(given.call) or isasyncgenfunction(given.call):
            return super().get_route_handler()
        turn = get_dependant(path="", call=_its_turn, scope="function")
        route.dependant = replace(given, dependencies=[*given.dependencies, turn])
        try:
            return super().get_route_handler()
        finally:
            route.dependant = given


Waits = Callable[[Caller, str, float], Awaitable[Response]]

_waiting: Counter[str] = Counter()
"""Requests that wait, by the id of their token."""


def seated(wait: Waits) -> Waits:
    """Let at most `WAITING_PER_TOKEN` requests of a token wait; others are answered at once."""

    @wraps(wait)
    async def on_a_seat(caller: Caller, job: str, seconds: float) -> Response:
        token = caller.token.id
        if _waiting[token] >= WAITING_PER_TOKEN:
            seconds = 0.0
        _waiting[token] += 1
        try:
            return await wait(caller, job, seconds)
        finally:
            _waiting[token] -= 1
            if not _waiting[token]:
                del _waiting[token]

    return on_a_seat
