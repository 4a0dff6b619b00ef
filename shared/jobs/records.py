"""Reading the records of a job, and checking what they say of objects."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from shared.errors import InputError
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store, sha256_stream

M = TypeVar("M", bound=BaseModel)

READERS = 16
"""Threads that ask the store for objects at the same time."""


class JobNotFoundError(InputError):
    """The store holds no such job, or holds it no longer."""


class UnreadableRecordError(InputError):
    """A record of a job is not what this version writes: cut off, damaged, or newer."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(
            f"{key} cannot be read ({why}): restore it from a backup, or submit "
            "the request again, which makes everything again"
        )


def read_record(store: Store, key: str, model: type[M]) -> M:
    """Read a record of a job. Raises `ObjectNotFoundError`, or `UnreadableRecordError`."""
    try:
        return store.get_model(key, model)
    except DamagedObjectError as error:
        raise UnreadableRecordError(key, error.why) from error


def holds(store: Store, key: str, digest: str) -> bool:
    """Say whether the store holds an object with this SHA-256."""
    try:
        with store.open(key) as stream:
            return sha256_stream(stream) == digest
    except ObjectNotFoundError:
        return False
