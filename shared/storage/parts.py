"""Uploads of large objects in parts, so that an interrupted upload can be resumed.

Parts go directly to an S3 server, by presigned URLs. A directory has no server, so its
parts are objects of their own until they are joined.
"""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minio.datatypes import Part
from minio.error import InvalidResponseError, S3Error

from shared.errors import InputError
from shared.storage import S3Store, Store
from shared.storage.presigning import presign_put


class PartUpload(ABC):
    """An upload of one object in numbered parts, from 1."""

    @abstractmethod
    def begin(self) -> str:
        """Begin an upload, and return its id in the store."""

    @abstractmethod
    def parts(self, upload: str) -> dict[int, int]:
        """Return the parts that have arrived: number → size in bytes."""

    @abstractmethod
    def url(self, upload: str, number: int, size: int, seconds: int) -> str | None:
        """Return a URL to PUT a part of `size` bytes to; None if `put` takes the part.

        The URL is valid for `seconds`, and signs the size: the server refuses another one.
        """

    @abstractmethod
    def put(self, upload: str, number: int, path: Path) -> None:
        """Store a file as a part. Raises `InputError` if parts have URLs."""

    @abstractmethod
    def complete(self, upload: str, parts: int) -> None:
        """Join parts 1 to `parts`, which must all have arrived, into the object.

        Raises:
            InputError: the upload is missing; the object is left unchanged.
        """

    @abstractmethod
    def abort(self, upload: str) -> None:
        """Give up an upload and delete its parts."""


class StoredParts(PartUpload):
    """Parts as objects of any store, below `parts/<upload>/`, as each upload has its own."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def begin(self) -> str:
        return secrets.token_hex(16)

    def parts(self, upload: str) -> dict[int, int]:
        folder = _part_key(upload)
        stats = self.store.stats(folder)
        return {int(key.removeprefix(folder)): stat.size for key, stat in stats}

    def url(self, upload: str, number: int, size: int, seconds: int) -> str | None:
        return None

    def put(self, upload: str, number: int, path: Path) -> None:
        self.store.put_file(_part_key(upload, number), path)

    def complete(self, upload: str, parts: int) -> None:
        with self.store.writing(self.key) as path, path.open("wb") as whole:
            # Count instead of listing: a part that another call has joined and deleted must raise
            # an error here, not be skipped.
            for number in range(1, parts + 1):
                with self.store.open(_part_key(upload, number)) as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
        self.abort(upload)

    def abort(self, upload: str) -> None:
        self.store.delete_prefix(_part_key(upload))


def _part_key(upload: str, number: int | None = None) -> str:
    """Return the key of an upload's part; without a number, what all of them begin with."""
    return f"parts/{upload}/" + ("" if number is None else f"{number:05d}")


class S3Parts(PartUpload):
    """The multipart uploads of an S3 server.

    The MinIO client offers them only as private methods.
    """

    def __init__(self, store: S3Store, key: str) -> None:
        self.client, self.signer, self.bucket = store.client, store.signer, store.bucket
        self.name = store.name(key)

    def begin(self) -> str:
        return str(self.client._create_multipart_upload(self.bucket, self.name, {}))

    def parts(self, upload: str) -> dict[int, int]:
        return {part.part_number: part.size or 0 for part in self._listed(upload)}

    def _listed(self, upload: str) -> Iterator[Part]:
        marker: str | None = None
        with _missing_upload_explained():
            while True:
                page = self.client._list_parts(
                    self.bucket, self.name, upload, part_number_marker=marker
                )
                yield from page.parts
                if not page.is_truncated:
                    return
                marker = str(page.next_part_number_marker)

    def url(self, upload: str, number: int, size: int, seconds: int) -> str | None:
        return presign_put(
            self.signer,
            self.bucket,
            self.name,
            {"uploadId": upload, "partNumber": str(number)},
            size,
            seconds,
        )

    def put(self, upload: str, number: int, path: Path) -> None:
        raise InputError("this store takes parts at their own URLs, which the upload lists")

    def complete(self, upload: str, parts: int) -> None:
        with _missing_upload_explained():
            listed = sorted(self._listed(upload), key=lambda part: part.part_number)[:parts]
            self.client._complete_multipart_upload(self.bucket, self.name, upload, listed)

    def abort(self, upload: str) -> None:
        with _missing_upload_explained():
            self.client._abort_multipart_upload(self.bucket, self.name, upload)


@contextmanager
def _missing_upload_explained() -> Iterator[None]:
    """Raise `InputError` instead of the server's error if the upload is missing."""
    try:
        yield
    except (S3Error, InvalidResponseError) as error:
        gone = "NoSuchUpload" in str(error) or "Response code: 404" in str(error)
        if gone:
            raise InputError("the store no longer has this upload: begin a new one") from error
        raise


def part_upload(store: Store, key: str) -> PartUpload:
    """Return the way to upload object `key` in parts to this kind of store."""
    return S3Parts(store, key) if isinstance(store, S3Store) else StoredParts(store, key)
