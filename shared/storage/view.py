"""A store that passes its calls to another one."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from shared.storage.store import ObjectNotFoundError, Stat, Store, check_key


class StoreView(Store):
    """Passes every call to another store; subclasses change what a put or a delete does."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.url = inner.url

    def put(self, key: str, data: bytes) -> str:
        return self.inner.put(key, data)

    def put_file(self, key: str, path: Path) -> str:
        return self.inner.put_file(key, path)

    def create(self, key: str, data: bytes) -> bool:
        return self.inner.create(key, data)

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def stat(self, key: str) -> Stat:
        return self.inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        return self.inner.list(prefix)

    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        return self.inner.stats(prefix)

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        return self.inner.dates(prefix)

    def folders(self, prefix: str, start: str = "") -> Iterator[str]:
        return self.inner.folders(prefix, start)

    def entries(self, prefix: str) -> Iterator[str]:
        return self.inner.entries(prefix)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def remove_leftovers(self, before: datetime) -> int:
        return self.inner.remove_leftovers(before)

    def local(self, key: str) -> Path:
        return self.inner.local(key)

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        return self.inner.open(key, start)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self.inner.read_range(key, start, length)

    def fetches(self) -> bool:
        return self.inner.fetches()

    def presign(self, key: str, seconds: int) -> str | None:
        return self.inner.presign(key, seconds)

    def free(self) -> int | None:
        return self.inner.free()


class ReadOnceStore(StoreView):
    """A store that fetches each object at most once; for the time of one request."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        if key not in self._objects:
            self._objects[key] = super().get(key)
        return self._objects[key]


class OverlayStore(StoreView):
    """Reads from another store, and keeps what is written apart, so that the other stays as it is.

    Bytes go to a temporary folder that is removed with this object. A file that is put is not
    copied: it is linked, or, where it is on another disk, must stay where it is.
    """

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._folder = tempfile.TemporaryDirectory(prefix="htd-overlay-")
        self._numbers = itertools.count()
        self._creating = threading.Lock()
        self._own: dict[str, Path | None] = {}  # None: deleted here

    def _new(self, suffix: str = "") -> Path:
        return Path(self._folder.name) / f"{next(self._numbers)}{suffix}"

    def put(self, key: str, data: bytes) -> str:
        path = self._new()
        path.write_bytes(data)
        return self.put_file(key, path)

    def put_file(self, key: str, path: Path) -> str:
        own = self._new("".join(path.suffixes))
        try:
            own.hardlink_to(path)
        except OSError:
            own = path
        self._own[check_key(key)] = own
        return self.stat(key).tag

    def create(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` if no object is there; say whether it was stored."""
        with self._creating:
            if self.exists(key):
                return False
            self.put(key, data)
            return True

    def delete(self, key: str) -> None:
        self._own[key] = None

    def remove_leftovers(self, before: datetime) -> int:
        return 0

    def get(self, key: str) -> bytes:
        return self.local(key).read_bytes() if key in self._own else self.inner.get(key)

    def local(self, key: str) -> Path:
        if key not in self._own:
            return self.inner.local(key)
        path = self._own[key]
        if path is None:
            raise ObjectNotFoundError(self, key)
        return path

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[IO[bytes]]:
        if key not in self._own:
            with self.inner.open(key, start) as stream:
                yield stream
            return
        with self.local(key).open("rb") as file:
            file.seek(start)
            yield file

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self.open(key, start) as stream:
            return stream.read(length)

    def exists(self, key: str) -> bool:
        return self._own[key] is not None if key in self._own else self.inner.exists(key)

    def stat(self, key: str) -> Stat:
        if key not in self._own:
            return self.inner.stat(key)
        stat = self.local(key).stat()
        return Stat(stat.st_size, f"{stat.st_mtime_ns:x}")

    def list(self, prefix: str = "") -> Iterator[str]:
        kept = {key for key in self.inner.list(prefix) if key not in self._own}
        yield from sorted(kept | {key for key in self._put() if key.startswith(prefix)})

    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        kept = [item for item in self.inner.stats(prefix) if item[0] not in self._own]
        own = [(key, self.stat(key)) for key in self._put() if key.startswith(prefix)]
        yield from sorted(kept + own)

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        yield from (item for item in self.inner.dates(prefix) if item[0] not in self._own)
        yield from ((key, datetime.now(UTC)) for key in self._put() if key.startswith(prefix))

    def folders(self, prefix: str, start: str = "") -> Iterator[str]:
        inside = (key.removeprefix(prefix) for key in self._put() if key.startswith(prefix))
        own = {name.partition("/")[0] for name in inside if "/" in name and name.startswith(start)}
        yield from sorted(own.union(self.inner.folders(prefix, start)))

    def entries(self, prefix: str) -> Iterator[str]:
        hidden = {key.removeprefix(prefix) for key in self._own if key.startswith(prefix)}
        yield from {name for name in self.inner.entries(prefix) if name not in hidden}.union(
            "".join(key.removeprefix(prefix).partition("/")[:2])
            for key in self._put()
            if key.startswith(prefix)
        )

    def presign(self, key: str, seconds: int) -> str | None:
        return None if key in self._own else self.inner.presign(key, seconds)

    def _put(self) -> Iterator[str]:
        return (key for key, path in self._own.items() if path is not None)
