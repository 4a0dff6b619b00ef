"""SHA-256 of bytes and files, and a memory of the hashes of files that have not changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, NamedTuple

from shared.errors import InputError
from shared.settings import settings
from shared.storage.cache import private_folder

_SETTLED_NS = 2_000_000_000
"""Nanoseconds since its last change after which a file's hash is remembered: a clock may give
two changes within this time the same timestamp."""


class Patch(NamedTuple):
    """Bytes that stand in a copy of a file at an offset, instead of those of the file."""

    offset: int
    data: bytes


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


_CHUNK = 1 << 20
"""Bytes that are read at a time."""


def sha256_stream(stream: IO[bytes]) -> str:
    """Return the SHA-256 of what is left of a stream in hexadecimal, reading it in pieces."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file, and return the SHA-256 of what was copied, even if the source changes."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def content_hash(path: Path, patches: Sequence[Patch] = ()) -> str:
    """Return the SHA-256 of a file's content; an unchanged file is read only once.

    With patches, it is that of a copy with them; they are in order and do not overlap.

    A hash is kept in `settings().cache_dir`, by the file's path, size, inode and times. If the
    cache cannot be written, every call reads the file.

    Raises:
        OSError: the file cannot be read.
    """
    real = path.resolve()
    name = os.fsencode(real).decode("utf-8", "backslashreplace")
    if patches:
        name += f"\0{_digest(patches)}"
    before = real.stat()
    identity = _identity(before)

    def read() -> tuple[str, bool]:
        digest = _patched_hash(real, patches)
        settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
        return digest, settled and _identity(real.stat()) == identity

    return remembered(name, identity, read)


def remembered(name: str, identity: str, read: Callable[[], tuple[str, bool]]) -> str:
    """Return a hash from the memory; one that is not there is read.

    Args:
        name: what the hash is of.
        identity: text that changes with its content.
        read: returns the hash, and whether it is that of this identity for sure.
    """
    try:
        with closing(_cache()) as cache:
            row = cache.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND identity = ?", (name, identity)
            ).fetchone()
            if row is not None:
                return str(row[0])
            digest, sure = read()
            if sure:
                with cache:
                    cache.execute(
                        "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)",
                        (name, identity, digest),
                    )
            return digest
    except sqlite3.Error:
        return read()[0]


def _digest(patches: Sequence[Patch]) -> str:
    """Hash patches one by one: together they may be larger than memory."""
    digest = hashlib.sha256()
    for offset, data in patches:
        digest.update(f"{offset} {len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _patched_hash(path: Path, patches: Sequence[Patch]) -> str:
    if not patches:
        return sha256_file(path)
    digest, position = hashlib.sha256(), 0
    with path.open("rb") as file:
        for offset, data in (*patches, Patch(path.stat().st_size, b"")):
            file.seek(position)
            while position < offset and (chunk := file.read(min(_CHUNK, offset - position))):
                digest.update(chunk)
                position += len(chunk)
            digest.update(data)
            position = offset + len(data)
    return digest.hexdigest()


def content_hash_of_files(
    paths: Iterable[tuple[str, Path]], patches: Mapping[Path, Sequence[Patch]] | None = None
) -> str:
    """Return one SHA-256 for several files, from their names and contents.

    Args:
        paths: name of each file, which counts as content, and its path. The order is free.
        patches: path → patches of that file, as in `content_hash`.

    Raises:
        OSError: a file cannot be read.
    """
    own = patches or {}
    lines = sorted(f"{name}\0{content_hash(path, own.get(path, ()))}" for name, path in paths)
    return sha256("\n".join(lines).encode())


def content_hash_of_folder(
    folder: Path, names: Iterable[str], patches: Mapping[str, Sequence[Patch]] | None = None
) -> str:
    """Return one SHA-256 for many files of a folder; unchanged files are read only once.

    Unlike `content_hash_of_files`, it keeps one hash for all of them: chunked images have many
    thousands of small files.

    Args:
        folder: the folder.
        names: paths of the files in it, which count as content. The order is free.
        patches: name → patches of that file, as in `content_hash`.

    Raises:
        OSError: a file cannot be read.
    """
    paths = {name: (folder / name).resolve() for name in sorted(names)}
    own = {name: patches[name] for name in paths if patches and patches.get(name)}
    stats = {name: path.stat() for name, path in paths.items()}
    lines = [f"{name}\0{paths[name]}\0{_identity(stat)}" for name, stat in stats.items()]
    lines += [f"{name}\0{_digest(found)}" for name, found in own.items()]
    identity = sha256("\n".join(lines).encode("utf-8", "backslashreplace"))
    latest = max((max(s.st_mtime_ns, s.st_ctime_ns) for s in stats.values()), default=0)
    try:
        with closing(_cache()) as cache:
            key = f"files {identity}"
            row = cache.execute("SELECT sha256 FROM hashes WHERE path = ?", (key,)).fetchone()
            if row is not None:
                return str(row[0])
            digest = _hash_all(paths, own)
            same = all(_identity(paths[name].stat()) == _identity(stats[name]) for name in paths)
            if same and time.time_ns() - latest > _SETTLED_NS:
                with cache:
                    cache.execute("INSERT OR REPLACE INTO hashes VALUES (?, '', ?)", (key, digest))
            return digest
    except sqlite3.Error:
        return _hash_all(paths, own)


def _hash_all(paths: dict[str, Path], patches: Mapping[str, Sequence[Patch]]) -> str:
    lines = [
        f"{name}\0{_patched_hash(path, patches.get(name, ()))}" for name, path in paths.items()
    ]
    return sha256("\n".join(lines).encode("utf-8", "backslashreplace"))


def _identity(stat: os.stat_result) -> str:
    # ctime is there because mtime can be set back, by `touch -r` for example.
    return f"{stat.st_size}-{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"


def _cache() -> sqlite3.Connection:
    try:
        folder = private_folder(settings().cache_dir / "hashes")
    except (OSError, InputError) as error:
        raise sqlite3.OperationalError(str(error)) from error
    cache = sqlite3.connect(folder / "hashes.sqlite", timeout=30)
    cache.execute(
        "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, identity TEXT, sha256 TEXT)"
    )
    return cache
