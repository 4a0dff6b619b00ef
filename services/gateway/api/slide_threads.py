"""Threads of their own for what reads slides, so that slow slides leave the others free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

from anyio import to_thread
from fastapi import Response

from services.gateway.api.access import Caller
from services.gateway.api.turns import Threads

THREADS = 16
"""Number of requests that read slides at the same time; others wait without a thread."""

THREADS_PER_TENANT = 6
"""Number of those that may be of one tenant."""

THREADS_PER_SLIDE = 4
"""Number of those that may be for one slide, which may be slow to fetch."""

_reading = Threads(THREADS)


def reads_slide(answer: Callable[..., Response]) -> Callable[..., Awaitable[Response]]:
    """Turn the function of a route into one that waits for its turn.

    The route has `caller`, and `slide` or `field`.
    """

    @wraps(answer)
    async def in_turn(*, caller: Caller, **values: Any) -> Response:
        tenant = caller.store.url
        slide = f"fields/{values['field']}" if "field" in values else str(values["slide"])
        async with (
            _reading.of(THREADS_PER_SLIDE, tenant, slide),
            _reading.of(THREADS_PER_TENANT, tenant),
        ):
            work = partial(answer, caller=caller, **values)
            return await to_thread.run_sync(work, limiter=_reading.threads)

    return in_turn
