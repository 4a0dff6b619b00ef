"""The interface of the object store.

A key is a relative POSIX path. A put is atomic (readers see the old object, the
new one or none), and a later put replaces an earlier one.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ValidationError

from shared.contracts.explaining import explain
from shared.errors import InputError
from shared.storage.hashing import (
    content_hash,
    content_hash_of_folder,
    remembered,
    sha256,
    sha256_stream,
)
from shared.storage.makers import maker

M = TypeVar("M", bound=BaseModel)

LARGE_RECORD = 2**16
"""Bytes from which on a parsed record is kept: each shard of a cohort of many slides reads it."""


@lru_cache(maxsize=8)
def _parsed(model: type[BaseModel], data: bytes) -> BaseModel:
    return model.model_validate_json(data)


class ObjectNotFoundError(InputError):
    """The store holds no object under the key."""

    def __init__(self, store: Store, key: str) -> None:
        command = maker(key)
        remedy = f": run {command} again, as it was run, or check the name" if command else ""
        super().__init__(f"{store.url} holds no object {key!r}{remedy}")
        self.key = key


class DamagedObjectError(InputError):
    """An object of the store does not hold what its key says.

    Attributes:
        why: what is wrong with it.
        remedy: the command that makes it again, in a phrase; empty: it is not known.
    """

    def __init__(self, store: Store, key: str, why: str) -> None:
        command = maker(key)
        self.remedy = f"run {command} again, as it was run" if command else ""
        super().__init__(
            f"{key!r} of {store.url} is damaged ({why})" + f": {self.remedy}" * bool(command)
        )
        self.key, self.why = key, why


class KeyTakenError(InputError):
    """An object lies where the key of another one needs a folder, or the other way round."""

    def __init__(self, key: str, other: str) -> None:
        super().__init__(
            f"{key!r} cannot be stored beside {other!r}, because one name would be a file and a "
            "folder: choose another name, or delete the other one first"
        )


_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 255
"""Limits of a key and of each of its names, in UTF-8: those of S3 and of file systems."""


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path that every kind of store can hold.

    Raises:
        InputError: it is empty, absolute, not normalized, or climbs out of the store; it has
            characters that cannot be seen; or it or one of its names is too long.
    """
    path = PurePosixPath(key)
    climbs = not path.parts or path.is_absolute() or ".." in path.parts or str(path) != key
    if climbs or "\\" in key:
        raise InputError(
            f"{key!r} is not a store key: use a relative path such as 'slides/a/slide.json'"
        )
    if _UNSEEN.search(key):
        raise InputError(f"{key!r} has characters that cannot be seen: leave them out")
    sizes = [len(name.encode()) for name in path.parts]
    if max(sizes) > MAX_NAME_BYTES or len(key.encode()) > MAX_KEY_BYTES:
        raise InputError(
            f"{key[:80]!r}… has a name of {max(sizes)} bytes and {len(key.encode())} in all: use "
            f"names of at most {MAX_NAME_BYTES} bytes, and {MAX_KEY_BYTES} in all"
        )
    return key


def file_identity(store: Store, name: str) -> str:
    """Return a text that changes with the content of a large file, or of a folder's files.

    Args:
        store: holds the file or folder, if `name` is a key.
        name: a key, whose tag is taken, or an absolute path, whose content is hashed.

    Raises:
        InputError: the file cannot be read.
    """
    if not PurePosixPath(name).is_absolute():
        if not store.exists(name) and (stats := list(store.stats(f"{name}/"))):
            tags = "\n".join(f"{key}\0{stat.tag}" for key, stat in stats)
            return sha256(tags.encode())
        return store.stat(name).tag
    path = Path(name)
    try:
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file())
            return content_hash_of_folder(path, (str(file.relative_to(path)) for file in files))
        return content_hash(path)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


_TURNS = [threading.Lock() for _ in range(64)]
"""Locks of `object_hash`: of several threads that want the hash of an object, one fetches it."""


def object_hash(store: Store, key: str) -> str:
    """Return the SHA-256 of an object's content; an unchanged object is read only once.

    An object on a server is read as a stream, and takes no place in the cache of files.

    Raises:
        ObjectNotFoundError: the store does not hold it.
    """
    if not store.fetches():
        return _hash_of(store, key, store.local(key))
    name = f"{store.url}/{key}"
    with _TURNS[hash(name) % len(_TURNS)]:
        before = store.stat(key)

        def read() -> tuple[str, bool]:
            with store.open(key) as stream:
                digest = sha256_stream(stream)
            return digest, store.stat(key) == before

        return remembered(name, f"{before.size}-{before.tag}", read)


def checked_file(store: Store, key: str, digest: str | None) -> Path:
    """Return a local file of an object, which must be as it was made.

    Args:
        store: holds the object.
        key: its key.
        digest: its SHA-256; None or empty: it is not known.

    Raises:
        ObjectNotFoundError: the store does not hold it.
        DamagedObjectError: it has another content.
    """
    path = store.local(key)
    if digest and _hash_of(store, key, path) != digest:
        raise DamagedObjectError(store, key, "it is not as it was made")
    return path


def _hash_of(store: Store, key: str, path: Path) -> str:
    """Return the SHA-256 of an object's local file, which may be deleted at any time."""
    try:
        return content_hash(path)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(store, key) from error


def checked_bytes(store: Store, key: str, digest: str | None) -> bytes:
    """Return the bytes of an object, as `checked_file` returns a file of it."""
    data = store.get(key)
    if digest and sha256(data) != digest:
        raise DamagedObjectError(store, key, "it is not as it was made")
    return data


def named_by_hash(store: Store, key: str) -> bytes:
    """Return the bytes of an object whose name, without the suffix, is their SHA-256.

    Raises as `checked_bytes`.
    """
    return checked_bytes(store, key, PurePosixPath(key).stem)


def file_size(store: Store, name: str) -> int:
    """Return the bytes of a large file, by its key or absolute path; 0: it cannot be read."""
    try:
        absolute = PurePosixPath(name).is_absolute()
        return Path(name).stat().st_size if absolute else store.size(name)
    except (OSError, InputError):
        return 0


class Stat(NamedTuple):
    """Size of an object in bytes, and a tag that changes whenever the object is replaced."""

    size: int
    tag: str


class Store(ABC):
    """Objects under keys. Implementations: `DirectoryStore`, `S3Store`."""

    url: str

    @abstractmethod
    def put(self, key: str, data: bytes) -> str:
        """Store `data` under `key`, whole or not at all; return the object's tag (see `Stat`)."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> str:
        """Store the content of the file at `path`, as `put` does."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` if no object is there; say whether it was stored.

        Of several creators at the same time one succeeds, except on S3 servers that do not know
        conditional writes.
        """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the object's bytes. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Say whether an object lies under `key`."""

    @abstractmethod
    def stat(self, key: str) -> Stat:
        """Return the object's size in bytes, and its tag. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield all keys that start with `prefix`, sorted."""

    @abstractmethod
    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        """Yield all keys that start with `prefix`, sorted, with what `stat` returns of each.

        A server tells this with the list, so it takes no call for each object.
        """

    @abstractmethod
    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Yield all keys that start with `prefix`, with the UTC times of their last put.

        They come in any order, and are not held in memory.
        """

    @abstractmethod
    def folders(self, prefix: str, start: str = "") -> Iterator[str]:
        """Yield the names of the folders directly below `prefix` (which ends in /), sorted.

        Only names that begin with `start` are listed.
        """

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[str]:
        """Yield the names directly below `prefix` (which ends in /): of objects, and of folders.

        Names of folders end in /; a folder that has lost its objects may be among them.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the object; a missing one is no error."""

    @abstractmethod
    def local(self, key: str) -> Path:
        """Return a read-only local file with the object's content.

        It is for libraries that need a real file (OpenSlide, HDF5). An S3 store downloads
        the object into a cache of limited size, keyed by its ETag; the file stays there as long
        as the path that was returned lives, so keep that one. Raises `ObjectNotFoundError`.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        """Read the object as a stream, from byte `start` on. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def presign(self, key: str, seconds: int) -> str | None:
        """Return a URL that reads the object for `seconds`; None if the store has no server."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes of the object from `start` on.

        Raises:
            ObjectNotFoundError: the store holds no such object.
        """
        with self.open(key, start) as stream:
            return stream.read(length)

    def fetches(self) -> bool:
        """Say whether `local` fetches objects from a server."""
        return False

    def remove_leftovers(self, before: datetime) -> int:
        """Remove half-written files last changed before a UTC time; return their number."""
        return 0

    def free(self) -> int | None:
        """Return the number of bytes that the store has room for; None if it is not known."""
        return None

    def size(self, key: str) -> int:
        """Return the object's size in bytes. Raises `ObjectNotFoundError`."""
        return self.stat(key).size

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object whose key starts with `prefix`."""
        for key in list(self.list(prefix)):
            self.delete(key)

    def put_json(self, key: str, value: Any) -> None:
        """Store `value` (plain JSON or a pydantic model) as JSON with sorted keys."""
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        self.put(key, (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode())

    def get_json(self, key: str) -> Any:
        """Return the parsed JSON object under `key`. Raises `ObjectNotFoundError`."""
        return json.loads(self.get(key))

    def get_model(self, key: str, model: type[M]) -> M:
        """Return the object under `key`, validated as `model`.

        A large record is parsed once per process, as long as its bytes stay the same.

        Raises:
            ObjectNotFoundError: the store holds no such object.
            DamagedObjectError: it is no such record.
        """
        return self.parse(key, self.get(key), model)

    def parse(self, key: str, data: bytes, model: type[M]) -> M:
        """Return what `get_model` does for an object with these bytes."""
        try:
            if len(data) < LARGE_RECORD:
                return model.model_validate_json(data)
            return cast(M, _parsed(model, data))
        except ValidationError as error:
            raise DamagedObjectError(self, key, explain(error)) from error

    @contextmanager
    def writing(self, key: str, suffix: str = "") -> Iterator[Path]:
        """Yield a temporary path; store its file under `key` unless the block raises."""
        suffix = suffix or "".join(PurePosixPath(key).suffixes)
        with tempfile.TemporaryDirectory(prefix="htd-") as folder:
            path = Path(folder) / f"object{suffix}"
            yield path
            self.put_file(key, path)
