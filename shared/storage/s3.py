"""Objects in a bucket of an S3 server."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlparse

import certifi
import urllib3
from minio import Minio
from minio.credentials.providers import IamAwsProvider, Provider, StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, S3Error

from shared.errors import InputError
from shared.settings import Settings
from shared.storage.cache import FileCache
from shared.storage.store import ObjectNotFoundError, Stat, Store, check_key

CONNECTIONS = 32
RETRIED = (500, 502, 503, 504)

ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
"""Variables by which a cluster tells a pod where to fetch the keys of its role."""

CONNECT_SECONDS = 10.0
READ_SECONDS = 120.0
COPIED_BYTES = 1 << 20

LOOKS, LOOK_SECONDS = 20, 0.05
"""Number of looks for an object that was just created, and seconds between two."""


@lru_cache(maxsize=1)
def _connections(_process: int, certificates: str) -> urllib3.PoolManager:
    """Return the connections of a process; its stores share them, as each tenant has a store."""
    return urllib3.PoolManager(
        maxsize=CONNECTIONS,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=5, backoff_factor=0.2, status_forcelist=RETRIED),
        ca_certs=certificates,
    )


class S3Store(Store):
    """Objects in a bucket of any S3 server (MinIO, AWS, …), below an optional prefix.

    Attributes:
        client: MinIO client of the server.
        signer: MinIO client that signs URLs, for the server's address as other clients know it.
    """

    def __init__(self, bucket: str, prefix: str, config: Settings) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self.cache = FileCache(config.cache_dir / "objects", int(config.cache_gb * 1e9))
        self._own = hashlib.sha256(f"{config.s3_endpoint}/{self.url}".encode()).hexdigest()[:16]
        self.http = _connections(os.getpid(), os.environ.get("SSL_CERT_FILE") or certifi.where())
        self.client = _client("HTD_S3_ENDPOINT", config.s3_endpoint, config, self.http)
        self.signer = (
            _client("HTD_S3_PUBLIC_ENDPOINT", config.s3_public_endpoint, config, self.http)
            if config.s3_public_endpoint
            else self.client
        )

    def name(self, key: str) -> str:
        """Return the name in the bucket of the object under `key`."""
        return check_key(self.prefix + check_key(key))

    def create_bucket(self) -> None:
        """Make the bucket if it is missing."""
        place = "open-jobs/-"  # every service may list this much
        try:
            next(self.list(place), None)
        except (S3Error, InvalidResponseError) as error:
            if not isinstance(self._translated(error, place), ObjectNotFoundError):
                raise
            self.client.make_bucket(self.bucket)

    def put(self, key: str, data: bytes) -> str:
        put = self.client.put_object(self.bucket, self.name(key), io.BytesIO(data), len(data))
        return _tag(put.etag)

    def put_file(self, key: str, path: Path) -> str:
        return _tag(self.client.fput_object(self.bucket, self.name(key), str(path)).etag)

    def create(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        # A presigned URL, because the client's own put does not pass this header on.
        url = self.client.get_presigned_url("PUT", self.bucket, self.name(key))
        response = self.http.request("PUT", url, body=data, headers={"If-None-Match": "*"})
        if response.status in {409, 412}:
            return False
        if response.status != 200:
            raise OSError(f"{self.url}: cannot create {key!r}: HTTP {response.status}")
        # A server that does not know the header stores the data of the last creator, and may show
        # no object while it exchanges two.
        for _ in range(LOOKS):
            with suppress(ObjectNotFoundError):
                return self.get(key) == data
            time.sleep(LOOK_SECONDS)
        raise OSError(f"{self.url}: {key!r} was created and is gone")

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def _translated(self, error: S3Error | InvalidResponseError, key: str) -> Exception:
        """Return `ObjectNotFoundError` for a missing object, else the error itself.

        The client does not parse the errors of servers that send them as text/xml (rclone).
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
        return Stat(stat.size or 0, _tag(stat.etag))

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

    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
        yield from sorted(
            (
                (item.object_name or "").removeprefix(self.prefix),
                Stat(item.size or 0, _tag(item.etag)),
            )
            for item in objects
            if not item.is_dir
        )

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
        for item in objects:
            if item.last_modified is not None:
                yield (item.object_name or "").removeprefix(self.prefix), item.last_modified

    def folders(self, prefix: str, start: str = "") -> Iterator[str]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix + start)
        names = (item.object_name or "" for item in objects if item.is_dir)
        yield from sorted(name.removeprefix(self.prefix + prefix).rstrip("/") for name in names)

    def entries(self, prefix: str) -> Iterator[str]:
        objects = self.client.list_objects(self.bucket, self.prefix + prefix)
        names = ((item.object_name or "").removeprefix(self.prefix + prefix) for item in objects)
        yield from (name for name in names if name)

    def delete(self, key: str) -> None:
        self.client.remove_object(self.bucket, self.name(key))

    def delete_prefix(self, prefix: str) -> None:
        found = self.client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
        names = (DeleteObject(item.object_name or "") for item in found if not item.is_dir)
        for error in self.client.remove_objects(self.bucket, names):
            raise OSError(f"could not delete {error.name}: {error.message}")

    def local(self, key: str) -> Path:
        size, tag = self.stat(key)
        # of each key, because keys x and x/y may have the same content
        version = hashlib.sha256(f"{tag}-{size}-{key}".encode()).hexdigest()[:16]

        def fetch(file: IO[bytes]) -> None:
            with self.open(key) as stream:
                shutil.copyfileobj(stream, file, COPIED_BYTES)

        return self.cache.file(f"{self._own}/{version}/{check_key(key)}", size, fetch)

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

    def read_range(self, key: str, start: int, length: int) -> bytes:
        try:
            response = self.client.get_object(
                self.bucket, self.name(key), offset=start, length=length
            )
        except (S3Error, InvalidResponseError) as error:
            raise self._translated(error, key) from error
        try:
            data = bytes(response.read(length))
            if response.length_remaining != 0:  # the server ignores ranges, and sends everything
                response.close()
            return data
        finally:
            response.release_conn()

    def fetches(self) -> bool:
        return True

    def presign(self, key: str, seconds: int) -> str | None:
        return self.signer.presigned_get_object(
            self.bucket, self.name(key), expires=timedelta(seconds=seconds)
        )


def _client(setting: str, url: str, config: Settings, http: urllib3.PoolManager) -> Minio:
    endpoint = urlparse(url)
    if endpoint.scheme not in {"http", "https"} or not endpoint.netloc:
        raise InputError(
            f"{setting}={url!r} is not an S3 server: set it to http://host:port or https://host"
        )
    return Minio(
        endpoint.netloc,
        credentials=_credentials(config, http),
        secure=endpoint.scheme == "https",
        region=config.s3_region,
        http_client=http,
    )


def _credentials(config: Settings, http: urllib3.PoolManager) -> Provider:
    """Return the keys of the settings or, where these have none, those of the workload's role.

    Raises:
        InputError: there are no keys, and the environment offers no role.
    """
    key = config.s3_access_key.get_secret_value()
    if key:
        return StaticProvider(key, config.s3_secret_key.get_secret_value())
    if any(os.environ.get(name) for name in ROLES):
        return IamAwsProvider(http_client=http, region=config.s3_region)
    raise InputError(
        "an s3:// store needs HTD_S3_ACCESS_KEY and HTD_S3_SECRET_KEY, or a role of the workload "
        f"({', '.join(ROLES)})"
    )


def _tag(etag: str | None) -> str:
    return (etag or "").strip('"')
