"""Bearer tokens, which are stored as hashes, in signed records.

A token is 32 random bytes. Nobody can guess it, so one round of SHA-256 protects it as well as
a slow password hash would. A token is looked up by its hash, so that no comparison needs to
take constant time.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from services.gateway.signing import SignedRecords
from shared.contracts.base import Contract, Name
from shared.contracts.tenants import LOCAL, Tenant
from shared.storage import ObjectNotFoundError

Scope = Literal["read", "annotate", "generate", "train", "admin"]

PREFIX = "access/tokens/"

KNOWN_SECONDS = 10.0
"""Time that a token's record stays in memory; other gateways accept a revoked token so long."""

log = logging.getLogger(__name__)

_SHAPE = re.compile(r"htd_[A-Za-z0-9_-]{43}")


class TokenRecord(Contract):
    """The stored record of a token: its name, tenant and scopes."""

    id: str = Field(description="first 16 hex digits of the token's SHA-256")
    name: Name = Field(description="name of the token's owner, for people and the audit log")
    tenant: Tenant
    scopes: tuple[Scope, ...]
    created: datetime


class Tokens:
    """The tokens of a store.

    Args:
        records: the store's signed records.
    """

    def __init__(self, records: SignedRecords) -> None:
        self.records = records
        self._known: dict[str, tuple[float, TokenRecord]] = {}

    def create(self, name: str, tenant: str, scopes: tuple[Scope, ...]) -> tuple[str, TokenRecord]:
        """Make a token and store its record; the token itself cannot be read again later."""
        token, record = _draw(name, tenant, scopes)
        self.records.put(f"{PREFIX}{digest_of(token)}.json", record)
        return token, record

    def create_first(self) -> str | None:
        """Make the local administrator's token if the store has no token yet, else return None."""
        if self.all(None):
            return None
        return self.create("admin", LOCAL, ("admin",))[0]

    def find(self, token: str) -> TokenRecord | None:
        """Return the record of a token, or None if the token is not valid."""
        return self.find_digest(digest_of(token)) if _SHAPE.fullmatch(token) else None

    def find_digest(self, digest: str) -> TokenRecord | None:
        """Return the record of a token by the token's SHA-256; None if it is not valid."""
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and now - known[0] < KNOWN_SECONDS:
            return known[1]
        self._known.pop(digest, None)
        try:
            record = self.records.get(f"{PREFIX}{digest}.json", TokenRecord)
        except ObjectNotFoundError:
            return None
        self._known[digest] = (now, record)
        return record

    def all(self, tenant: str | None) -> list[TokenRecord]:
        """Return the records of a tenant's stored tokens; None: those of all tenants."""
        return [
            record
            for _, record in self.records.all(PREFIX, TokenRecord)
            if tenant in {None, record.tenant}
        ]

    def revoke(self, record: TokenRecord) -> None:
        """Revoke a token, for good."""
        for key, _ in self.records.all(PREFIX + record.id, TokenRecord):
            self.records.revoke(key)
        self._known.clear()


def _draw(name: str, tenant: str, scopes: tuple[Scope, ...]) -> tuple[str, TokenRecord]:
    token = f"htd_{secrets.token_urlsafe(32)}"
    return token, TokenRecord(
        id=digest_of(token)[:16], name=name, tenant=tenant, scopes=scopes, created=datetime.now(UTC)
    )


def digest_of(secret: str) -> str:
    """Return the SHA-256 of a secret as hex digits, under which its record is stored."""
    return hashlib.sha256(secret.encode()).hexdigest()
