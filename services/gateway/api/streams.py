"""Send objects of the store without holding them in memory."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from fastapi import Header, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from services.gateway.api.etags import NOT_MODIFIED, etag_headers, not_modified
from services.gateway.api.problems import ProblemError, documented, returning
from shared.storage import (
    DamagedObjectError,
    ObjectNotFoundError,
    Store,
    checked_bytes,
    checked_file,
    object_hash,
)

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


def check_made(store: Store, key: str, digest: str) -> int:
    """Return the size of an object, which must be there as it was made.

    Where the object must be fetched, its content is not looked at: whoever sends it on sees it.

    Raises:
        DamagedObjectError: it is missing, or has another content than that of `digest` (SHA-256).
    """
    if not store.fetches():
        return made_file(store, key, digest).stat().st_size
    try:
        return store.size(key)
    except ObjectNotFoundError as error:
        raise DamagedObjectError(store, key, "it is missing") from error


def check_whole(store: Store, key: str, digest: str) -> None:
    """Check that an object is there as it was made, before anything of it is used.

    An object that does not change is read once, also where it must be fetched.

    Raises:
        DamagedObjectError: it is missing, or has another content than that of `digest` (SHA-256).
    """
    try:
        same = object_hash(store, key) == digest
    except ObjectNotFoundError as error:
        raise DamagedObjectError(store, key, "it is missing") from error
    if not same:
        raise DamagedObjectError(store, key, "it is not as it was made")


def made_file(store: Store, key: str, digest: str | None) -> Path:
    """Return a local file of an object, which must be there as it was made.

    Raises:
        DamagedObjectError: it is missing, or has another content than that of `digest` (SHA-256).
    """
    try:
        return checked_file(store, key, digest)
    except ObjectNotFoundError as error:
        raise DamagedObjectError(store, key, "it is missing") from error


def read_made(store: Store, key: str, digest: str | None) -> bytes:
    """Return the bytes of a small object, which must be as it was made.

    Args:
        store: holds the object.
        key: its key.
        digest: its SHA-256; None: it may not be made yet.

    Raises:
        ObjectNotFoundError: it is not there, and not known to be made.
        DamagedObjectError: it was made, and is missing or has another content.
    """
    try:
        return checked_bytes(store, key, digest)
    except ObjectNotFoundError as error:
        if digest is None:
            raise
        raise DamagedObjectError(store, key, "it is missing") from error


def checked_chunks(store: Store, key: str, size: int, digest: str) -> Iterator[bytes]:
    """Yield a whole object's bytes, the last of them only if all are as they were made.

    A client then sees that the answer is not whole.

    Raises:
        DamagedObjectError: they are not, after all but the last ones.
    """
    seen, last = hashlib.sha256(), b""
    for part in chunks(store, key, 0, size):
        seen.update(part)
        yield last
        last = part
    if seen.hexdigest() != digest:
        raise DamagedObjectError(store, key, "it is not as it was made")
    yield last


def send_object(
    store: Store,
    key: str,
    wanted: WantedHeaders,
    media_type: str,
    name: str,
    digest: str | None = None,
) -> Response:
    """Answer with an object, or with the range of it that the client wants.

    A whole object is checked on its way; before a range is sent, all of the object is.

    Args:
        store: holds the object.
        key: key of the object.
        wanted: headers of the request.
        media_type: media type of the object.
        name: file name of the download.
        digest: SHA-256 of the object as it was made; None: it is not known.

    Raises:
        ObjectNotFoundError: there is no such object.
        DamagedObjectError: it is missing, or not as it was made.
        ProblemError: the range lies outside of the object (416).
    """
    if digest is not None:
        check_made(store, key, digest)
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
    if digest is None:
        body = chunks(store, key, start, stop)
    elif stop - start == size:
        body = checked_chunks(store, key, size, digest)
    else:
        check_whole(store, key, digest)
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


class TarMember(NamedTuple):
    """An object in a tar: its name there, its key, its size in bytes, and its SHA-256."""

    name: str
    key: str
    size: int
    digest: str


def tar_stream(store: Store, members: Sequence[TarMember]) -> Iterator[bytes]:
    """Yield the bytes of a tar of objects. Raises as `checked_chunks` does."""
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        info.mode = 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from checked_chunks(store, member.key, member.size, member.digest)
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
