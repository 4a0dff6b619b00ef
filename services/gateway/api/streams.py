"""Send objects of the store without holding them in memory."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Header, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from services.gateway.api.etags import NOT_MODIFIED, etag_headers, not_modified
from services.gateway.api.problems import ProblemError, documented, returning
from shared.storage import Store

CHUNK_BYTES = 1 << 20

_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class WantedHeaders(BaseModel):
    """Headers that ask for a range of an object, or for the object only if it has changed."""

    range: str | None = Field(None, description="`bytes=<first>-<last>`: one range of the object")
    if_range: str | None = Field(
        None, description="ETag; if the object has another one, the whole object is sent"
    )
    if_none_match: str | None = Field(None, description="ETags of versions that the client has")


Wanted = Annotated[WantedHeaders, Header()]


def sending(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of an operation that answers with `send_object`."""
    whole = returning(media_type)
    return (
        whole
        | {206: whole[200] | {"description": "The requested range"}}
        | NOT_MODIFIED
        | documented(416)
    )


def chunks(store: Store, key: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield an object's bytes from `start` to before `stop`. Raises `ObjectNotFoundError`."""
    with store.open(key, start) as stream:
        while part := stream.read(min(CHUNK_BYTES, stop - start)):
            yield part
            start += len(part)


def send_object(
    store: Store, key: str, wanted: WantedHeaders, media_type: str, name: str
) -> Response:
    """Answer with an object, or with the range of it that the client wants.

    Args:
        store: holds the object.
        key: key of the object.
        wanted: headers of the request.
        media_type: media type of the object.
        name: file name of the download.

    Raises:
        ObjectNotFoundError: there is no such object.
        ProblemError: the range lies outside of the object (416).
    """
    size, tag = store.stat(key)
    quoted = quote(name, safe="")
    headers = etag_headers(tag, "private, no-cache") | {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quoted}"
        if quoted != name
        else f'attachment; filename="{name}"',
    }
    unchanged = not_modified(headers, wanted.if_none_match)
    if unchanged is not None:
        return unchanged
    part = _parse_range(wanted.range, size) if wanted.if_range in {None, headers["ETag"]} else None
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    body = chunks(store, key, start, stop)
    return StreamingResponse(body, 206 if part else 200, headers, media_type)


def _parse_range(range: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte of a Range header and the byte after its last one.

    None means the whole object: there is no header, or it is ignored because it has several
    ranges or is malformed (RFC 9110 allows this).
    """
    match = _ONE_RANGE.fullmatch(range or "")
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise ProblemError(
            416,
            "no-such-part",
            f"range {range} lies outside of the object, which has {size} bytes",
            remedy="leave Range out, or ask for a range within the object",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop


def tar_stream(store: Store, members: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """Yield the bytes of a tar of objects.

    Args:
        store: holds the objects.
        members: (name in the tar, key) of each object.
    """
    for name, key in members:
        info = tarfile.TarInfo(name)
        info.size = store.size(key)
        info.mode = 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from chunks(store, key, 0, info.size)
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
