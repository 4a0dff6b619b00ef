"""Streams of a job's status: all listeners of a job share one poller."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from starlette.concurrency import run_in_threadpool

from services.gateway.api.problems import ProblemError
from shared.contracts.jobs import ENDED

POLL_SECONDS = 1.0
VALID_SECONDS = 2.0
"""Time between two looks at whether a listener's token is still valid."""

MAX_STREAMS = 32
"""Number of streams that a token may have open in this process."""


class Status(Protocol):
    """A status that has a job's state."""

    @property
    def state(self) -> str:
        """The job's state."""


S = TypeVar("S", bound=Status)


@dataclass
class _Watch:
    """State of one watched job; each change sets the event `changed` and replaces it by a new one.

    Attributes:
        task: the poller.
        listeners: number of listeners.
        seen: last status that the poller read.
        error: error that ended the poller.
        changed: set at the next change.
    """

    task: asyncio.Task[None] | None = None
    listeners: int = 0
    seen: Status | None = None
    error: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watching:
    """Polls jobs for the listeners of this process, with one poller for each job."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}
        self._streams: Counter[str] = Counter()

    @contextmanager
    def seat(self, token: str) -> Iterator[None]:
        """Count a stream of a token while it is open.

        Args:
            token: id of the token.

        Raises:
            ProblemError: the token has `MAX_STREAMS` streams (429).
        """
        if self._streams[token] >= MAX_STREAMS:
            raise ProblemError(
                429,
                "too-many-streams",
                f"this token has {MAX_STREAMS} event streams open",
                remedy="close some of them first",
                headers={"Retry-After": "60"},
            )
        self._streams[token] += 1
        try:
            yield
        finally:
            self._streams[token] -= 1
            if not self._streams[token]:
                del self._streams[token]

    async def follow(
        self, name: str, read: Callable[[], S], valid: Callable[[], bool]
    ) -> AsyncIterator[S]:
        """Yield a job's status at once and after every change, until the job has ended.

        Args:
            name: name of the status; all listeners of a name share one poller.
            read: reads the status; it is called in a thread.
            valid: says whether the listener may still listen; it is called in a thread.
        """
        watch = self._watches.setdefault(name, _Watch())
        watch.listeners += 1
        if watch.task is None:
            watch.task = asyncio.create_task(self._poll(watch, read))
        sent: Status | None = None
        checked = time.monotonic()
        try:
            while True:
                if time.monotonic() - checked >= VALID_SECONDS:
                    if not await run_in_threadpool(valid):
                        return
                    checked = time.monotonic()
                changed = watch.changed
                if watch.error is not None:
                    raise watch.error
                if watch.seen is None or watch.seen == sent:
                    await changed.wait()
                    continue
                sent = watch.seen
                yield sent  # type: ignore[misc]  # all readers of a name return one type
                if sent.state in ENDED:
                    return
        finally:
            watch.listeners -= 1
            if not watch.listeners:
                watch.task.cancel()
                self._watches.pop(name, None)

    async def _poll(self, watch: _Watch, read: Callable[[], Status]) -> None:
        while watch.seen is None or watch.seen.state not in ENDED:
            try:
                status = await run_in_threadpool(read)
            except Exception as error:
                watch.error = error
            changed, watch.changed = watch.changed, asyncio.Event()
            if watch.error is None:
                watch.seen = status
            changed.set()
            if watch.error is not None:
                return
            await asyncio.sleep(POLL_SECONDS)
