"""A store that passes its calls to another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import IO

from shared.storage.store import Stat, Store


class StoreView(Store):
    """Passes every call to another store; subclasses change what a put or a delete does."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.url = inner.url

    def put(self, key: str, data: bytes) -> None:
        self.inner.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self.inner.put_file(key, path)

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

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        return self.inner.dates(prefix)

    def folders(self, prefix: str) -> Iterator[str]:
        return self.inner.folders(prefix)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def remove_leftovers(self, before: datetime) -> int:
        return self.inner.remove_leftovers(before)

    def local(self, key: str) -> Path:
        return self.inner.local(key)

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        return self.inner.open(key, start)

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
