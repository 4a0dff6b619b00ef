"""Stream the body of a request to a file, so that large bodies do not fill the memory."""

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
from shared.storage import KeyTakenError, Store, check_key

ContentLength = Annotated[int, Header(ge=0, description="size of the body in bytes")]

RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""OpenAPI description of an operation that reads its body as a stream."""

WRITE_BYTES = 1 << 20


@asynccontextmanager
async def received(request: Request, size: int) -> AsyncIterator[Path]:
    """Write the body of a request to a temporary file, and yield its path.

    The size is checked, because it was counted against a quota and the server does not enforce
    Content-Length for a chunked body.

    Args:
        request: the request.
        size: Content-Length of the request in bytes.

    Raises:
        ProblemError: the body ended early, or has another size (400).
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
                f"Content-Length says {size} bytes, but "
                f"{'more' if arrived > size else arrived} arrived",
                remedy="send the size of the body in Content-Length",
            )
        yield path


def check_place(store: Store, key: str) -> None:
    """Check that the key of a slide's file is no folder of others, and that no file is its folder.

    S3 servers that keep objects as files would acknowledge such an object and not keep it.

    Raises:
        KeyTakenError: another object is in the way.
    """
    others = store.list(f"{key}/")
    folders = (str(folder) for folder in PurePosixPath(key).parents if len(folder.parts) > 3)
    other = next(others, None) or next(filter(store.exists, folders), None)
    if other is not None:
        raise KeyTakenError(key, other)


def file_name(path: str) -> str:
    """Check and return the path of a slide's file: a name, or a folder and a name.

    Both must begin with a letter or digit, so that no file is hidden.

    Raises:
        ProblemError: the path is not allowed (422).
    """
    parts = PurePosixPath(path).parts
    plain = all(part[0].isalnum() and part.isprintable() for part in parts)
    if not plain or not 1 <= len(parts) <= 2:
        raise ProblemError(
            422,
            "invalid",
            f"{path!r} is not a valid name for a slide's file",
            remedy="begin names with a letter or digit, and use at most one folder",
        )
    return check_key(path)
