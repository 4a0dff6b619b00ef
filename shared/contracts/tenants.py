"""Tenants: each has its own part of the store, with the layout of a whole store.

access/tenants/<tenant>.json   TenantRecord
access/revoked/                marks of revoked tokens and readings
access/tokens/, readings/, links/, sessions/   signed records of the gateways
tenants/<tenant>/…             that tenant's slides, models, datasets, jobs
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field, StringConstraints

from shared.contracts.base import Contract

LOCAL = "local"
"""The tenant at the root of the store; it always exists."""

REVOKED = "access/revoked/"
"""Prefix of the marks of revoked records, which stay: a record that is put back is not valid."""

SESSIONS, LINKS = "access/sessions/", "access/links/"
"""Prefixes of the records of browsers' sessions, and of links that begin one; they are swept."""

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=63)]
"""A tenant's name. It has no dot, because a dot separates it from the rest of a job's id."""


RESERVED_FOLDERS = frozenset({"access", "audit", "tenants", "triton"})
"""Folders that tenants may not name: the local tenant's store is the root, which has them."""


FOLDERS = RESERVED_FOLDERS | {
    "clusters", "cohorts", "datasets", "encoders", "features", "fields", "idempotency", "images",
    "jobs", "models", "names", "open-jobs", "parts", "patches", "regions", "reports", "slides",
    "sources", "tiles", "training", "uploads",
}  # fmt: skip
"""Folders of a store. Tenants' results and slides may not be called so: the * of a policy's
`tenants/*/models/*` crosses slashes, so policies deny such folders further down."""


class TenantRecord(Contract):
    """The daily quotas of a tenant."""

    images_per_day: int | None = Field(None, ge=0, description="None: no limit")
    upload_bytes_per_day: int | None = Field(None, ge=0, description="None: no limit")


def tenant_key(tenant: str) -> str:
    """Return the key of a tenant's record in the root of the store."""
    return f"access/tenants/{tenant}.json"


def is_path(text: str) -> bool:
    """Say whether a text names a file of the machine, or climbs with "..", and so is no key."""
    path = PurePosixPath(text)
    return path.is_absolute() or ".." in path.parts or "\\" in text or text.startswith("~")


def is_reserved(key: str) -> bool:
    """Say whether a key, or a prefix that ends with a slash, lies in one of `RESERVED_FOLDERS`."""
    first, slash, _ = str(PurePosixPath(key)).partition("/")
    return bool(slash or key.endswith("/")) and first.casefold() in RESERVED_FOLDERS
