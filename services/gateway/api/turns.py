"""Turns of tenants: what is slow for one of them leaves threads for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import Response

from services.gateway.api.access import Caller
from services.gateway.api.problems import ProblemError

T = TypeVar("T")
P = ParamSpec("P")

DECODING = 8
"""Number of requests whose pictures are decoded at the same time, in a process each."""

DECODING_PER_TENANT = 2
"""Number of those that may be of one tenant."""

QUEUED_PER_TENANT = 32
"""Number of further ones that may wait, with their bodies in memory."""

WAITING_PER_TOKEN = 32
"""Number of requests of one token that may wait for an image."""


class Turns:
    """Threads of their own for a kind of requests; requests wait for them without a thread.

    Args:
        threads: number of requests that run at the same time.
    """

    def __init__(self, threads: int) -> None:
        self.threads = CapacityLimiter(threads)
        self._some: WeakValueDictionary[tuple[str, ...], CapacityLimiter] = WeakValueDictionary()

    def of(self, most: int, *key: str) -> CapacityLimiter:
        """Return the limiter of what is named by a key, such as a tenant's store."""
        return self._some.get(key) or self._some.setdefault(key, CapacityLimiter(most))


_decoding = Turns(DECODING)


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
