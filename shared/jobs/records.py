"""The records of a job: writing them under a seal, reading them, and what they say of objects.

A record ends in a seal, the SHA-256 of its key and its content: one that lies under the key of
another, or was changed since, is not read. Those of earlier versions have none, and are trusted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel

from shared.errors import InputError
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store, sha256, sha256_stream

M = TypeVar("M", bound=BaseModel)

READERS = 16
"""Threads that ask the store for objects at the same time."""

SEAL = b',\n "seal": "'
SEAL_LINE = b'{"seal": "'


class JobNotFoundError(InputError):
    """The store holds no such job, or holds it no longer."""


class UnreadableRecordError(InputError):
    """A record of a job is not what this version writes: cut off, damaged, or newer."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(
            f"{key} cannot be read ({why}): restore it from a backup, or submit "
            "the request again, which makes everything again"
        )


class LostShardsError(UnreadableRecordError):
    """A segment of a job's plan is gone or damaged: the plan must be made again."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)
        self.key = key


def write_record(store: Store, key: str, record: BaseModel) -> None:
    """Store a record of a job as JSON, with its seal as the last field."""
    plain = json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True).encode()
    body = plain.removesuffix(b"\n}")
    store.put(key, body + SEAL + _seal(key, body) + b'"\n}\n')


def read_record(store: Store, key: str, model: type[M]) -> M:
    """Read a record of a job. Raises `ObjectNotFoundError`, or `UnreadableRecordError`."""
    body, sealed, end = (data := store.get(key)).rpartition(SEAL)
    if sealed:
        if end != _seal(key, body) + b'"\n}\n':
            raise UnreadableRecordError(key, "it was changed, or is the record of something else")
        data = body + b"\n}\n"
    try:
        return store.parse(key, data, model)
    except DamagedObjectError as error:
        raise UnreadableRecordError(key, error.why) from error


def seal_lines(key: str, lines: Iterable[str]) -> bytes:
    """Return lines of JSON as the content of an object, with a last line that seals them."""
    body = "".join(f"{line}\n" for line in lines).encode()
    return body + SEAL_LINE + _seal(key, body) + b'"}\n'


def sealed_lines(key: str, data: bytes) -> list[bytes]:
    """Return the lines of an object of `seal_lines`. Raises `UnreadableRecordError`."""
    body, sealed, end = data.rpartition(SEAL_LINE)
    if not sealed:  # by an earlier version
        return data.splitlines()
    if end != _seal(key, body) + b'"}\n':
        raise UnreadableRecordError(key, "it was changed, or is the record of something else")
    return body.splitlines()


def _seal(key: str, body: bytes) -> bytes:
    return sha256(key.encode() + b"\0" + body).encode()


def holds(store: Store, key: str, digest: str) -> bool:
    """Say whether the store holds an object with this SHA-256."""
    try:
        with store.open(key) as stream:
            return sha256_stream(stream) == digest
    except ObjectNotFoundError:
        return False
