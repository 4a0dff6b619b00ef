"""Streams the body of a request to a file, so that large bodies do not fill the memory."""

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
"""OpenAPI of an operation that reads its body as a stream."""

WRITE_BYTES = 1 << 20


@asynccontextmanager
async def received(request: Request, size: int) -> AsyncIterator[Path]:
    """Give a temporary file with the request's body.

    Args:
        request: the request.
        size: bytes of the body by its Content-Length, which were counted against a quota. The
            server does not enforce it for a body that is sent in chunks.

    Raises:
        ProblemError: the body broke off, or has another size (400).
    """
    with tempfile.TemporaryDirectory(prefix="htd-body-") as folder:
        path = Path(folder) / "body"
        pending, arrived = bytearray(), 0
        with path.open("wb") as file:
            try:
                async for part in request.stream():
                    pending += part
                    arrived += len(part)
                    if arrived > size:
                        break
                    if len(pending) >= WRITE_BYTES:
                        await run_in_threadpool(file.write, bytes(pending))
                        pending.clear()
            except ClientDisconnect as error:
                raise ProblemError(400, "broken-off", "the body broke off") from error
            file.write(pending)
        if arrived != size:
            raise ProblemError(
                400,
                "wrong-length",
                f"Content-Length says {size} bytes, and "
                f"{'more' if arrived > size else arrived} came",
                remedy="send the size of the body",
            )
        yield path


def file_name(path: str) -> str:
    """Check the name of a slide's file: at most two levels, nothing hidden.

    Raises:
        ProblemError: it is not such a name (422).
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
