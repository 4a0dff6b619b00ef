"""Files that were fetched from a server, kept below a number of bytes.

The processes of a machine share the folder. A file is in use while a process holds a lock on it;
locks end with their process, so a crash leaves nothing in use.

    <store>/<version>/<key>        the file; the time of the folder <version> is its last use
    <store>/<version>/…/.part-…  a file that a process which holds its lock is fetching
    lock                           held by whoever makes room; the sum of all sizes
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, NamedTuple

from shared.errors import InputError

PART = ".part-"

log = logging.getLogger(__name__)


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user may write to, and return it.

    Raises:
        InputError: it belongs to somebody else, who could put other files there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise InputError(
            f"{folder} is no folder of this user, so others could change what is cached there: "
            "set HTD_CACHE_DIR to a folder of your own"
        )
    if state.st_mode & 0o022:
        folder.chmod(0o700)
    return folder


class CachedPath(PosixPath):
    """Path of a cached file, which stays as long as this object lives."""


class _Entry(NamedTuple):
    """A file of the cache: whether it is whole, the time of its last use, its size in bytes."""

    whole: bool
    used: float
    size: int
    path: Path


class FileCache:
    """A folder of fetched files; those that were not used for longest make room for others.

    Args:
        folder: the folder.
        limit: bytes that the files may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def file(self, name: str, size: int, fetch: Callable[[IO[bytes]], object]) -> Path:
        """Return a file, which is fetched unless it is there.

        Processes that want the same file wait for the one that fetches it.

        Args:
            name: `<store>/<version>/<key>`.
            size: size of the file, bytes.
            fetch: writes the file's content.

        Raises:
            InputError: the file alone takes more than the limit, or the folder is not this user's.
            OSError: the content has another size.
        """
        path = private_folder(self.folder) / name
        self._drop_foreign(path)
        version = self.folder / PurePosixPath(*PurePosixPath(name).parts[:2])
        while True:
            held = self._open(path, size) or self._fetched(path, size, fetch)
            if held is not None:
                with suppress(OSError):
                    os.utime(version)
                found = CachedPath(path)
                weakref.finalize(found, os.close, held)
                return found

    def _drop_foreign(self, path: Path) -> None:
        """Remove links on the way to a file, and refuse what belongs to somebody else.

        It is from the time before the folder was private.
        """
        inner = path.relative_to(self.folder)
        for part in (*reversed(inner.parents[:-1]), inner):
            place = self.folder / part
            try:
                state = place.lstat()
            except FileNotFoundError:
                return
            if stat.S_ISLNK(state.st_mode):
                place.unlink()
            elif state.st_uid != os.geteuid():
                raise InputError(
                    f"{place} is not this user's, so it may hold anything: remove it, or set "
                    "HTD_CACHE_DIR to a folder of your own"
                )

    def _open(self, path: Path, size: int) -> int | None:
        """Open a file that is there and hold its lock; None: it is not there, or not whole."""
        if path.is_symlink():
            path.unlink()
        try:
            held = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        fcntl.flock(held, fcntl.LOCK_SH)
        there = _is(path, held)
        if there and os.fstat(held).st_size == size:
            return held
        if there:
            path.unlink(missing_ok=True)
        os.close(held)  # else it was removed between the two calls
        return None

    def _fetched(self, path: Path, size: int, fetch: Callable[[IO[bytes]], object]) -> int | None:
        """Fetch a file and hold its lock; None: look again, as another process was faster."""
        if size > self.limit:
            raise InputError(
                f"{path.name} has {size / 1e9:,.1f} GB, and HTD_CACHE_GB allows "
                f"{self.limit / 1e9:g} for all files that are fetched from the store: raise it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(PART + hashlib.sha256(path.name.encode()).hexdigest()[:16])
        if part.is_symlink():
            part.unlink()
        try:
            held = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            return None
        try:
            if not _locked(held) or path.exists() or not _is(part, held):
                os.close(held)
                return None
            self._make_room(size, held)
            with os.fdopen(os.dup(held), "r+b") as file:
                fetch(file)
                file.flush()
                if file.tell() != size:
                    raise OSError(errno.EIO, f"{file.tell()} of {size} bytes came", str(path))
            part.replace(path)
            fcntl.flock(held, fcntl.LOCK_SH)  # for a moment nobody holds it
            if not _is(path, held):
                os.close(held)
                return None
        except BaseException:
            with suppress(OSError):
                part.unlink()
            os.close(held)
            raise
        return held

    def _make_room(self, size: int, held: int) -> None:
        """Remove files until `size` bytes more fit, and let the open file take them.

        The sum of all sizes is kept in the lock's file, so that files are listed only where it is
        above the limit; it may be too large, if files went away, but never too small.
        """
        with (self.folder / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            text = lock.read()
            total = int(text) if text.isdecimal() else self.limit
            if total + size > self.limit:
                total = self._shrunk(self.limit - size)
            os.truncate(held, size)
            lock.truncate(0)
            lock.write(str(total + size))

    def _shrunk(self, target: int) -> int:
        """Remove what was not used for longest until `target` bytes or fewer are left; return them.

        First go all that broken fetches have left.
        """
        entries = sorted(self._entries())
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if (total > target or not entry.whole) and _removed(entry.path):
                total -= entry.size
        if total > target:
            log.warning(
                "files in use take %.1f GB more than HTD_CACHE_GB allows", (total - target) / 1e9
            )
        return total

    def _entries(self) -> Iterator[_Entry]:
        for version in self.folder.glob("*/*"):
            with suppress(OSError):
                used = version.stat().st_mtime
                for path in version.rglob("*"):
                    with suppress(OSError):
                        if path.is_file():
                            whole = not path.name.startswith(PART)
                            yield _Entry(whole, used, path.stat().st_size, path)


def _locked(held: int) -> bool:
    """Take a file's lock; else wait until another process has fetched the file, or ended."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(held, fcntl.LOCK_SH)
        return False
    return True


def _is(path: Path, held: int) -> bool:
    """Say whether an open file is the one that a path names."""
    try:
        there = path.lstat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(held))


def _removed(path: Path) -> bool:
    """Remove a file unless a process uses it, and the folders that are empty then."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        for folder in list(path.parents)[:8]:
            folder.rmdir()  # fails at the first one that holds more
    except OSError:
        return not path.exists()
    finally:
        os.close(held)
    return True
