"""Taking a body to a file as it comes, so that its size is no matter of memory."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from services.gateway.api.problems import ProblemError
from shared.storage import check_key

ContentLength = Annotated[int, Header(ge=0, description="bytes of the body")]

RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""OpenAPI of an operation that reads its body as it comes."""

WRITE = 1 << 20


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Path]:
    """Give a temporary file with the request's body.

    Raises:
        ProblemError: the body broke off (400).
    """
    with tempfile.TemporaryDirectory(prefix="htd-body-") as folder:
        path = Path(folder) / "body"
        pending = bytearray()
        with path.open("wb") as file:
            try:
                async for part in request.stream():
                    pending += part
                    if len(pending) >= WRITE:
                        await run_in_threadpool(file.write, bytes(pending))
                        pending.clear()
            except ClientDisconnect as error:
                raise ProblemError(400, "broken-off", "the body broke off") from error
            file.write(pending)
        yield path


def file_name(path: str) -> str:
    """Check the name of a slide's file: at most two levels, nothing hidden.

    Raises:
        ProblemError: it is no such name (422).
    """
    parts = PurePosixPath(path).parts
    plain = all(part[0].isalnum() and part.isprintable() for part in parts)
    if not plain or not 1 <= len(parts) <= 2:
        raise ProblemError(
            422,
            "invalid",
            f"{path!r} is no name of a slide's file",
            remedy="begin with a letter or digit; slides of several files may have one folder",
        )
    return check_key(path)
