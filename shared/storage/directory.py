"""Objects as files below a directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from shared.storage.store import KeyTakenError, ObjectNotFoundError, Stat, Store, check_key

PART = ".part-"
"""Beginning of the names of files that are being written."""

_MASK = os.umask(0o077)
os.umask(_MASK)
_MODE = 0o666 & ~_MASK
"""Mode of objects: that of other new files, although temporary files are their owner's alone."""


class DirectoryStore(Store):
    """Objects as files below a directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        self.url = str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def put(self, key: str, data: bytes) -> str:
        return self._replace(key, lambda path: path.write_bytes(data))

    def put_file(self, key: str, path: Path) -> str:
        return self._replace(key, lambda temporary: shutil.copyfile(path, temporary))

    def create(self, key: str, data: bytes) -> bool:
        with self._temporary(key) as temporary:
            temporary.write_bytes(data)
            temporary.chmod(_MODE)
            _sync(temporary)
            try:
                self._path(key).hardlink_to(temporary)
            except FileExistsError:
                return False
        _sync(self._path(key).parent)
        return True

    def _replace(self, key: str, write: Callable[[Path], object]) -> str:
        """Put what a function writes into a file; return its tag."""
        with self._temporary(key) as temporary:
            write(temporary)
            temporary.chmod(_MODE)
            _sync(temporary)
            tag = _stat(temporary).tag
            temporary.replace(self._path(key))
        _sync(self._path(key).parent)
        return tag

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """Yield an empty file in the folder of `key`, and remove it at the end."""
        target = self._path(key)
        if target.is_dir():
            if other := next(self.list(f"{key}/"), None):
                raise KeyTakenError(key, other)
            self._remove_empty(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            if not self.root.is_dir():
                raise
            names = (str(name) for name in PurePosixPath(key).parents if name.name)
            raise KeyTakenError(key, next(filter(self.exists, names), key)) from None
        handle, name = tempfile.mkstemp(prefix=PART, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_empty(self, folder: Path) -> None:
        """Remove the empty folders that deleted objects left under an object's name."""
        for path, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # another process has put an object there meanwhile
                Path(path).rmdir()

    def get(self, key: str) -> bytes:
        with self.open(key) as file:
            return file.read()

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def stat(self, key: str) -> Stat:
        with self._found(key):
            return _stat(self.local(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self.root / prefix.rpartition("/")[0]
        keys = (
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(base)
            for name in names
            if not name.startswith(PART)
        )
        yield from sorted(key for key in keys if key.startswith(prefix))

    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # the object was deleted meanwhile
                yield key, _stat(self._path(key))

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # the object was deleted meanwhile
                yield key, datetime.fromtimestamp(self._path(key).stat().st_mtime, UTC)

    def folders(self, prefix: str, start: str = "") -> Iterator[str]:
        base = self.root / prefix
        items = base.iterdir() if base.is_dir() else iter(())
        folders = (item for item in items if item.name.startswith(start) and item.is_dir())
        yield from sorted(
            item.name for item in folders if any(files for _, _, files in os.walk(item))
        )

    def entries(self, prefix: str) -> Iterator[str]:
        base = self.root / prefix
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(base) as items:
            for item in items:
                if item.is_dir():
                    yield f"{item.name}/"
                elif not item.name.startswith(PART):
                    yield item.name

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def remove_leftovers(self, before: datetime) -> int:
        leftovers = [
            Path(folder) / name
            for folder, _, names in os.walk(self.root)
            for name in names
            if name.startswith(PART)
        ]
        removed = 0
        for path in leftovers:
            with suppress(FileNotFoundError):  # it was written to its end meanwhile
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                    path.unlink()
                    removed += 1
        return removed

    def local(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFoundError(self, key)
        return path

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[IO[bytes]]:
        with self._found(key):
            file = self.local(key).open("rb")
        with file:
            file.seek(start)
            yield file

    @contextmanager
    def _found(self, key: str) -> Iterator[None]:
        """Take a file that goes away inside of the block for an object that was never there."""
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFoundError(self, key) from error

    def free(self) -> int | None:
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(there).free

    def presign(self, key: str, seconds: int) -> str | None:
        return None


def _sync(path: Path) -> None:
    """Write a file or a folder to the disk, so that it survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stat(path: Path) -> Stat:
    stat = path.stat()
    # The tag has the inode, because a coarse clock may give two puts the same time.
    return Stat(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_ino:x}-{stat.st_size:x}")
