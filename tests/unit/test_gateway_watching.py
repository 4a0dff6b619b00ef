"""All listeners of a job share one poller, and end with it or with their tokens."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from services.gateway.api import watching
from shared.errors import InputError


def test_many_listeners_share_one_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.01)
    looks = 0

    def look() -> SimpleNamespace:
        nonlocal looks
        looks += 1
        return SimpleNamespace(state="done" if looks == 5 else "running", looks=looks)

    async def listen(board: watching.Watching) -> list[str]:
        return [status.state async for status in board.follow("job", look, lambda: True)]

    async def all_listeners() -> list[list[str]]:
        board = watching.Watching()
        return await asyncio.gather(*(listen(board) for _ in range(300)))

    heard = asyncio.run(all_listeners())
    assert looks == 5
    assert len(heard) == 300
    assert all(states[-1] == "done" for states in heard)


def test_a_poller_that_fails_ends_its_listeners() -> None:
    def look() -> SimpleNamespace:
        raise InputError("gone")

    async def listen() -> None:
        async for _ in watching.Watching().follow("job", look, lambda: True):
            pass

    with pytest.raises(InputError, match="gone"):
        asyncio.run(listen())


def test_a_stream_ends_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watching, "VALID_SECONDS", 0.0)
    asked = iter([True, True, False])

    async def listen() -> int:
        running = SimpleNamespace(state="running")
        board = watching.Watching()
        heard = board.follow("job", lambda: running, lambda: next(asked))
        return len([status async for status in heard])

    assert asyncio.run(asyncio.wait_for(listen(), 30)) == 1
