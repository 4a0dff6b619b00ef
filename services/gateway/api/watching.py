"""Live status: one poller per job, however many listen to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from starlette.concurrency import run_in_threadpool

from shared.contracts.jobs import ENDED

POLL_SECONDS = 1.0


class Status(Protocol):
    """Something with a job's state."""

    @property
    def state(self) -> str:
        """The job's state."""


S = TypeVar("S", bound=Status)


@dataclass
class _Watch:
    """What is known of one job; `changed` is set, and replaced, with every news."""

    task: asyncio.Task[None] | None = None
    listeners: int = 0
    seen: Status | None = None
    error: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Watching:
    """The jobs that this process watches for its listeners."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}

    async def follow(self, name: str, look: Callable[[], S]) -> AsyncIterator[S]:
        """Yield a status whenever it has changed, until the job has ended.

        Args:
            name: of what is watched; all who follow it share one poller.
            look: reads the status; called in a thread.
        """
        watch = self._watches.setdefault(name, _Watch())
        watch.listeners += 1
        if watch.task is None:
            watch.task = asyncio.create_task(self._poll(watch, look))
        told: Status | None = None
        try:
            while True:
                changed = watch.changed
                if watch.error is not None:
                    raise watch.error
                if watch.seen is None or watch.seen == told:
                    await changed.wait()
                    continue
                told = watch.seen
                yield told  # type: ignore[misc]  # of this name, so of this type
                if told.state in ENDED:
                    return
        finally:
            watch.listeners -= 1
            if not watch.listeners:
                watch.task.cancel()
                self._watches.pop(name, None)

    async def _poll(self, watch: _Watch, look: Callable[[], Status]) -> None:
        while watch.seen is None or watch.seen.state not in ENDED:
            try:
                found = await run_in_threadpool(look)
            except Exception as error:
                watch.error = error
            news, watch.changed = watch.changed, asyncio.Event()
            if watch.error is None:
                watch.seen = found
            news.set()
            if watch.error is not None:
                return
            await asyncio.sleep(POLL_SECONDS)
