"""The object store: a directory or an S3 bucket, with the same keys and semantics."""

from typing import TYPE_CHECKING, Any

from shared.storage.address import open_store
from shared.storage.directory import DirectoryStore
from shared.storage.faults import is_fault
from shared.storage.hashing import (
    Patch,
    content_hash,
    content_hash_of_files,
    content_hash_of_folder,
    copy_hashed,
    sha256,
    sha256_file,
    sha256_stream,
)
from shared.storage.room import check_room
from shared.storage.store import (
    DamagedObjectError,
    KeyTakenError,
    ObjectNotFoundError,
    Stat,
    Store,
    check_key,
    checked_bytes,
    checked_file,
    file_identity,
    file_size,
    named_by_hash,
    object_hash,
)
from shared.storage.view import OverlayStore, ReadOnceStore, StoreView

if TYPE_CHECKING:
    from shared.storage.s3 import S3Store

__all__ = [
    "DamagedObjectError",
    "DirectoryStore",
    "KeyTakenError",
    "ObjectNotFoundError",
    "OverlayStore",
    "Patch",
    "ReadOnceStore",
    "S3Store",
    "Stat",
    "Store",
    "StoreView",
    "check_key",
    "check_room",
    "checked_bytes",
    "checked_file",
    "content_hash",
    "content_hash_of_files",
    "content_hash_of_folder",
    "copy_hashed",
    "file_identity",
    "file_size",
    "is_fault",
    "named_by_hash",
    "object_hash",
    "open_store",
    "sha256",
    "sha256_file",
    "sha256_stream",
]


def __getattr__(name: str) -> Any:
    """Import `S3Store` at its first use, because the S3 client takes long to import."""
    if name == "S3Store":
        from shared.storage.s3 import S3Store

        return S3Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
