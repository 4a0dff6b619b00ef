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
from shared.contracts.ingest import slide_key
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

MAX_FILES = 1000
"""Number of files that a slide may have: each answer about the slide names all of them."""


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
    """Check that a slide has room for a file, which may replace one of the same key.

    S3 servers that keep objects as files would acknowledge a file that is a folder of others, or
    whose folder is a file, and not keep it.

    Args:
        store: holds the slide.
        key: key of the file, `slides/<slide>/<kind>/<file>`.

    Raises:
        KeyTakenError: another object is in the way.
        ProblemError: the slide has `MAX_FILES` others (409).
    """
    slide, kind, _ = key.removeprefix("slides/").split("/", 2)
    others = [other for other in store.list(slide_key(slide, f"{kind}/")) if other != key]
    for other in others:
        if other.startswith(f"{key}/") or key.startswith(f"{other}/"):
            raise KeyTakenError(key, other)
    if len(others) >= MAX_FILES:
        raise ProblemError(
            409,
            "too-many-files",
            f"slide {slide!r} has {len(others)} files, and may have {MAX_FILES}",
            remedy="DELETE it, and upload the files of one slide only",
        )


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
