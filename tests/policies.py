"""The policies of the S3 server's users, as a server evaluates them, around a store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from shared.storage import Stat, Store, StoreView

FOLDER = Path(__file__).parents[1] / "docker/s3/policies"
SERVICES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


class AccessDeniedError(AssertionError):
    """A policy does not allow what a service does."""


@cache
def statements(service: str) -> tuple[dict[str, Any], ...]:
    """The statements of a service's policy, for a bucket `b` without a prefix."""
    text = (FOLDER / f"{service}.json").read_text()
    document = json.loads(text.replace("BUCKET", "b").replace("PREFIX", ""))
    assert document["Version"] == "2012-10-17"
    return tuple(document["Statement"])


def _like(pattern: str, text: str) -> bool:
    parts = (re.escape(part) for part in re.split(r"(?<=[*?])|(?=[*?])", pattern))
    wild = "".join({r"\*": ".*", r"\?": "."}.get(part, part) for part in parts)
    return re.fullmatch(wild, text, re.S) is not None


@cache
def allows(service: str, action: str, key: str) -> bool:
    """Say whether a service may do `action` to the object `key`, or list the prefix `key`."""
    listing = action == "s3:ListBucket"
    resource = "arn:aws:s3:::b" if listing else f"arn:aws:s3:::b/{key}"
    verdict = False
    for statement in statements(service):
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        condition = statement.get("Condition", {})
        assert set(condition) <= {"StringLike"}
        prefixes = condition.get("StringLike", {}).get("s3:prefix")
        if (
            any(_like(each, action) for each in statement["Action"])
            and any(_like(each, resource) for each in statement["Resource"])
            and (prefixes is None or (listing and any(_like(each, key) for each in prefixes)))
        ):
            if statement["Effect"] == "Deny":
                return False
            verdict = True
    return verdict


class Policed(StoreView):
    """A tenant's store as the user of a service may use it.

    Args:
        inner: the store.
        service: the service whose policy holds.
        prefix: place of the store in the bucket, with its trailing slash.
    """

    def __init__(self, inner: Store, service: str, prefix: str = "") -> None:
        super().__init__(inner)
        self.service, self.prefix = service, prefix

    def _check(self, action: str, key: str) -> None:
        if not allows(self.service, action, self.prefix + key):
            raise AccessDeniedError(f"{self.service} may not {action} {self.prefix}{key}")

    def put(self, key: str, data: bytes) -> str:
        self._check("s3:PutObject", key)
        return super().put(key, data)

    def put_file(self, key: str, path: Path) -> str:
        self._check("s3:PutObject", key)
        return super().put_file(key, path)

    def create(self, key: str, data: bytes) -> bool:
        self._check("s3:PutObject", key)
        self._check("s3:GetObject", key)
        return super().create(key, data)

    def get(self, key: str) -> bytes:
        self._check("s3:GetObject", key)
        return super().get(key)

    def exists(self, key: str) -> bool:
        self._check("s3:GetObject", key)
        return super().exists(key)

    def stat(self, key: str) -> Stat:
        self._check("s3:GetObject", key)
        return super().stat(key)

    def local(self, key: str) -> Path:
        self._check("s3:GetObject", key)
        return super().local(key)

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        self._check("s3:GetObject", key)
        return super().open(key, start)

    def delete(self, key: str) -> None:
        self._check("s3:DeleteObject", key)
        super().delete(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        self._check("s3:ListBucket", prefix)
        return super().list(prefix)

    def stats(self, prefix: str) -> Iterator[tuple[str, Stat]]:
        self._check("s3:ListBucket", prefix)
        return super().stats(prefix)

    def dates(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        self._check("s3:ListBucket", prefix)
        return super().dates(prefix)

    def folders(self, prefix: str) -> Iterator[str]:
        self._check("s3:ListBucket", prefix)
        return super().folders(prefix)
