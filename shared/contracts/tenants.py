"""Tenants: each has a part of the store to itself, laid out as a store of its own.

access/tenants/<tenant>.json   TenantRecord
tenants/<tenant>/…             that tenant's slides, models, datasets, jobs
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from shared.contracts.base import Contract

LOCAL = "local"
"""The tenant that has the root of the store; the only one until others are made."""

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=63)]
"""A tenant's name: without a dot, because a dot ends it in the ids of jobs."""


class TenantRecord(Contract):
    """The daily quotas of a tenant."""

    images_per_day: int | None = Field(None, ge=0, description="None: no limit")
    upload_bytes_per_day: int | None = Field(None, ge=0, description="None: no limit")


def tenant_key(tenant: str) -> str:
    """Key of a tenant's record, in the root of the store."""
    return f"access/tenants/{tenant}.json"
