"""The object store: a directory or an S3 bucket, with the same keys and semantics.

A key is a relative POSIX path. A put is atomic (readers see the old object, the
new one or none) and a later put replaces an earlier one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlparse

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, S3Error
from pydantic import BaseModel

from shared.errors import InputError
from shared.settings import Settings, settings

M = TypeVar("M", bound=BaseModel)


class ObjectNotFoundError(InputError):
    """The store holds no object under the key."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__(f"{store.url} holds no object {key!r}")
        self.key = key


def check_key(key: str) -> str:
    """Return `key` if it is a plain relative path.

    Raises:
        InputError: it is empty, absolute, or climbs out of the store.
    """
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or str(path) != key or "\\" in key:
        raise InputError(
            f"{key!r} is no store key: use a relative path such as 'slides/a/slide.json'"
        )
    return key


class Stat(NamedTuple):
    """What a store says of an object; `tag` is another one whenever the object is replaced."""

    size: int
    tag: str


class ObjectStore(ABC):
    """Objects under keys. Implementations: `DirectoryStore`, `S3Store`."""

    url: str

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, whole or not at all."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Store the content of the file at `path`, whole or not at all."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the object's bytes. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Say whether there is an object under `key`."""

    @abstractmethod
    def stat(self, key: str) -> Stat:
        """Return the object's size in bytes, and its tag. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield all keys that start with `prefix`, sorted."""

    @abstractmethod
    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Yield all keys that start with `prefix`, sorted, and when they were last put (UTC)."""

    @abstractmethod
    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders directly below `prefix` (which ends in /), sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the object; nothing happens where there is none."""

    @abstractmethod
    def local(self, key: str) -> Path:
        """Return a read-only local file with the object's content.

        Libraries that need a real file (OpenSlide, HDF5) read through this. An S3
        store downloads into a cache, keyed by the object's ETag.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        """Read the object as a stream, from byte `start` on. Raises `ObjectNotFoundError`."""

    @abstractmethod
    def presign(self, key: str, seconds: int) -> str | None:
        """Return a URL from which anybody can read the object for so long.

        None where the store has no server of its own.
        """

    def size(self, key: str) -> int:
        """Return the object's size in bytes. Raises `ObjectNotFoundError`."""
        return self.stat(key).size

    def delete_prefix(self, prefix: str) -> None:
        """Delete every object whose key starts with `prefix`."""
        for key in list(self.list(prefix)):
            self.delete(key)

    def put_json(self, key: str, value: Any) -> None:
        """Store `value` (plain JSON or a pydantic model) in a canonical form."""
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        self.put(key, (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode())

    def get_json(self, key: str) -> Any:
        """Return the parsed JSON object under `key`."""
        return json.loads(self.get(key))

    def get_model(self, key: str, model: type[M]) -> M:
        """Return the object under `key`, validated as `model`."""
        return model.model_validate_json(self.get(key))

    @contextmanager
    def writing(self, key: str, suffix: str = "") -> Iterator[Path]:
        """Give a temporary path to write to; store it under `key` on a clean exit."""
        suffix = suffix or "".join(PurePosixPath(key).suffixes)
        with tempfile.TemporaryDirectory(prefix="htd-") as folder:
            path = Path(folder) / f"object{suffix}"
            yield path
            self.put_file(key, path)


class DirectoryStore(ObjectStore):
    """Objects as files below a directory."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        self.url = str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def put(self, key: str, data: bytes) -> None:
        with self._replacing(key) as temporary:
            temporary.write_bytes(data)

    def put_file(self, key: str, path: Path) -> None:
        with self._replacing(key) as temporary:
            shutil.copyfile(path, temporary)

    @contextmanager
    def _replacing(self, key: str) -> Iterator[Path]:
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        return self.local(key).read_bytes()

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def stat(self, key: str) -> Stat:
        found = self.local(key).stat()
        # The inode too: a clock may be too coarse to tell two puts apart.
        return Stat(found.st_size, f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}")

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self.root / prefix.rpartition("/")[0]
        keys = (
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(base)
            for name in names
            if not name.startswith(".part-")
        )
        yield from sorted(key for key in keys if key.startswith(prefix))

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield key, datetime.fromtimestamp(self._path(key).stat().st_mtime, UTC)

    def folders(self, prefix: str) -> Iterator[str]:
        base = self.root / prefix
        found = (item for item in base.iterdir() if item.is_dir()) if base.is_dir() else ()
        yield from sorted(
            item.name for item in found if any(files for _, _, files in os.walk(item))
        )

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def local(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFoundError(self, key)
        return path

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[IO[bytes]]:
        with self.local(key).open("rb") as file:
            file.seek(start)
            yield file

    def presign(self, key: str, seconds: int) -> str | None:
        return None


def _client(setting: str, url: str, config: Settings) -> Minio:
    endpoint = urlparse(url)
    if endpoint.scheme not in {"http", "https"} or not endpoint.netloc:
        raise InputError(
            f"{setting}={url!r} is no S3 server: set it to http://host:port or https://host"
        )
    if not config.s3_access_key.get_secret_value():
        raise InputError("an s3:// store needs HTD_S3_ACCESS_KEY and HTD_S3_SECRET_KEY")
    return Minio(
        endpoint.netloc,
        access_key=config.s3_access_key.get_secret_value(),
        secret_key=config.s3_secret_key.get_secret_value(),
        secure=endpoint.scheme == "https",
        region=config.s3_region,
    )


class S3Store(ObjectStore):
    """Objects in a bucket of any S3 server (MinIO, AWS, …), below an optional prefix.

    Attributes:
        client: of the server.
        signer: signs URLs for those who reach the server under another address.
    """

    def __init__(self, bucket: str, prefix: str, config: Settings) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self.cache = (
            config.cache_dir
            / hashlib.sha256(f"{config.s3_endpoint}/{self.url}".encode()).hexdigest()[:16]
        )
        self.client = _client("HTD_S3_ENDPOINT", config.s3_endpoint, config)
        self.signer = (
            _client("HTD_S3_PUBLIC_ENDPOINT", config.s3_public_endpoint, config)
            if config.s3_public_endpoint
            else self.client
        )

    def name(self, key: str) -> str:
        """Name of the object in the bucket."""
        return self.prefix + check_key(key)

    def create_bucket(self) -> None:
        """Make the bucket where it is missing."""
        if not self.client.bucket_exists(self.bucket):
            self.client.make_bucket(self.bucket)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(self.bucket, self.name(key), io.BytesIO(data), len(data))

    def put_file(self, key: str, path: Path) -> None:
        self.client.fput_object(self.bucket, self.name(key), str(path))

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def _translated(self, error: S3Error | InvalidResponseError, key: str) -> Exception:
        """Tell a missing object from other errors.

        Servers that send their errors as text/xml (rclone) get past the client's parser.
        """
        if isinstance(error, S3Error):
            missing = error.code in {"NoSuchKey", "NoSuchObject", "NoSuchBucket", "NotFound"}
        else:
            missing = "Response code: 404" in str(error)
        return ObjectNotFoundError(self, key) if missing else error

    def stat(self, key: str) -> Stat:
        try:
            stat = self.client.stat_object(self.bucket, self.name(key))
        except (S3Error, InvalidResponseError) as error:
            raise self._translated(error, key) from error
        return Stat(stat.size or 0, (stat.etag or "").strip('"'))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
        names = (item.object_name or "" for item in objects if not item.is_dir)
        yield from sorted(name.removeprefix(self.prefix) for name in names)

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
        yield from sorted(
            ((item.object_name or "").removeprefix(self.prefix), item.last_modified)
            for item in objects
            if item.last_modified is not None
        )

    def folders(self, prefix: str) -> Iterator[str]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix)
        names = (item.object_name or "" for item in objects if item.is_dir)
        yield from sorted(name.removeprefix(self.prefix + prefix).rstrip("/") for name in names)

    def delete(self, key: str) -> None:
        self.client.remove_object(self.bucket, self.name(key))

    def delete_prefix(self, prefix: str) -> None:
        names = (DeleteObject(self.prefix + key) for key in self.list(prefix))
        for error in self.client.remove_objects(self.bucket, names):
            raise OSError(f"could not delete {error.name}: {error.message}")

    def local(self, key: str) -> Path:
        size, tag = self.stat(key)
        version = hashlib.sha256(f"{tag}-{size}".encode()).hexdigest()[:16]
        path = self.cache / version / check_key(key)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Others may fetch it at the same time: to a file of its own, then renamed.
            part = f"{path}.{secrets.token_hex(8)}.part"
            self.client.fget_object(self.bucket, self.name(key), part)
            Path(part).replace(path)
        return path

    @contextmanager
    def open(self, key: str, start: int = 0) -> Iterator[IO[bytes]]:
        try:
            response = self.client.get_object(self.bucket, self.name(key), offset=start)
        except (S3Error, InvalidResponseError) as error:
            raise self._translated(error, key) from error
        try:
            yield cast(IO[bytes], response)
        finally:
            response.close()
            response.release_conn()

    def presign(self, key: str, seconds: int) -> str | None:
        return self.signer.presigned_get_object(
            self.bucket, self.name(key), expires=timedelta(seconds=seconds)
        )


class StoreView(ObjectStore):
    """Another store, seen through: subclasses change what a put or a delete does."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.url = inner.url

    def put(self, key: str, data: bytes) -> None:
        self.inner.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self.inner.put_file(key, path)

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

    def local(self, key: str) -> Path:
        return self.inner.local(key)

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        return self.inner.open(key, start)

    def presign(self, key: str, seconds: int) -> str | None:
        return self.inner.presign(key, seconds)


def open_store(url: str | None = None, config: Settings | None = None) -> ObjectStore:
    """Open the store at `url`: a directory, or `s3://bucket[/prefix]`.

    Without `url`, the process's `HTD_STORE` is opened. S3 servers and keys come
    from `HTD_S3_*`.

    Raises:
        InputError: the address is malformed, or the keys are missing or refused.
    """
    config = config or settings()
    url = url or config.store
    if "://" not in url:
        return DirectoryStore(url)
    parsed = urlparse(url)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise InputError(f"{url!r} is no store: give a directory or s3://bucket/prefix")
    store = S3Store(parsed.netloc, parsed.path, config)
    try:
        store.create_bucket()
    except (InvalidResponseError, S3Error) as error:
        raise InputError(
            f"{config.s3_endpoint} refused the keys for bucket {parsed.netloc!r}: "
            "check HTD_S3_ACCESS_KEY and HTD_S3_SECRET_KEY"
        ) from error
    return store


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
