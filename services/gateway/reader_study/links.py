"""Readers' tokens: each opens one series of one study, and nothing else.

The store has only their hashes; services.gateway.api.tokens says why that is enough.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from shared.contracts.base import Contract, Name
from shared.contracts.tenants import Tenant
from shared.storage import ObjectNotFoundError, ObjectStore

PREFIX = "access/readings/"

_SHAPE = re.compile(r"htr_[A-Za-z0-9_-]{43}")


class ReadingRecord(Contract):
    """The record of a reader's token; `id` is the start of its hash."""

    id: str
    tenant: Tenant
    study: Name
    reader: str


def make_link(root: ObjectStore, tenant: str, study: str, reader: str) -> str:
    """Make a reader's token; it is not stored, so this is the only time that it is returned."""
    token = f"htr_{secrets.token_urlsafe(32)}"
    digest = _digest(token)
    record = ReadingRecord(id=digest[:16], tenant=tenant, study=study, reader=reader)
    root.put_json(f"{PREFIX}{digest}.json", record)
    return token


def find_link(root: ObjectStore, token: str) -> ReadingRecord | None:
    """Return the record of a reader's token, or None if it is not known."""
    if not _SHAPE.fullmatch(token):
        return None
    try:
        return root.get_model(f"{PREFIX}{_digest(token)}.json", ReadingRecord)
    except ObjectNotFoundError:
        return None


def drop_links(root: ObjectStore, tenant: str, study: str, reader: str | None = None) -> None:
    """Make the tokens of a reader, or of all readers of a study, void."""
    for key in list(root.list(PREFIX)):
        record = root.get_model(key, ReadingRecord)
        if (record.tenant, record.study) == (tenant, study) and reader in {None, record.reader}:
            root.delete(key)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
