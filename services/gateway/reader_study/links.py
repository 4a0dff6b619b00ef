"""Readers' tokens: each gives access to one reader's series of one study, and to nothing else.

The store holds only hashes of the tokens, in signed records; see `services.gateway.api.tokens`.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from services.gateway.signing import SignedRecords
from shared.contracts.base import Contract, Name
from shared.contracts.tenants import Tenant
from shared.storage import ObjectNotFoundError

PREFIX = "access/readings/"

_PATTERN = re.compile(r"htr_[A-Za-z0-9_-]{43}")


class ReadingRecord(Contract):
    """The record of a reader's token; `id` is the start of the token's SHA-256 hash."""

    id: str
    tenant: Tenant
    study: Name
    reader: str


def make_link(records: SignedRecords, tenant: str, study: str, reader: str) -> str:
    """Make and return a token for a reader.

    Only its hash is stored, so the token cannot be read again.
    """
    token = f"htr_{secrets.token_urlsafe(32)}"
    digest = _digest(token)
    record = ReadingRecord(id=digest[:16], tenant=tenant, study=study, reader=reader)
    records.put(f"{PREFIX}{digest}.json", record)
    return token


def find_link(records: SignedRecords, token: str) -> ReadingRecord | None:
    """Return the record of a reader's token; None if the token is unknown or revoked."""
    if not _PATTERN.fullmatch(token):
        return None
    try:
        return records.get(f"{PREFIX}{_digest(token)}.json", ReadingRecord)
    except ObjectNotFoundError:
        return None


def drop_links(records: SignedRecords, tenant: str, study: str, reader: str | None = None) -> None:
    """Revoke the tokens of one reader, or of all readers, of a study."""
    for key, record in records.all(PREFIX, ReadingRecord):
        if (record.tenant, record.study) == (tenant, study) and reader in {None, record.reader}:
            records.revoke(key)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
