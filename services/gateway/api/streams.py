"""Sending objects without holding them in memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence

from fastapi.responses import StreamingResponse

from shared.storage import ObjectStore

CHUNK = 1 << 20


def chunks(store: ObjectStore, key: str) -> Iterator[bytes]:
    """Yield an object's bytes in parts. Raises `ObjectNotFoundError`."""
    with store.open(key) as stream:
        while part := stream.read(CHUNK):
            yield part


def send_object(
    store: ObjectStore, key: str, media_type: str, name: str | None = None
) -> StreamingResponse:
    """Answer with an object; `name` makes it a download. Raises `ObjectNotFoundError`."""
    headers = {"Content-Length": str(store.size(key))}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return StreamingResponse(chunks(store, key), media_type=media_type, headers=headers)


def tar_stream(store: ObjectStore, members: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """Yield a tar of objects.

    Args:
        store: where they are.
        members: (name in the tar, key).
    """
    for name, key in members:
        info = tarfile.TarInfo(name)
        info.size = store.size(key)
        info.mode = 0o644
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from chunks(store, key)
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
