"""Tenants: each has a part of the store to itself, laid out as a store of its own.

The local tenant, which is the only one until others are made, has the root. The id of
another tenant's job starts with its name and a dot: queue messages, leases and progress
are told apart by it, and a worker finds the part of the store that the job lies in.

access/tenants/<tenant>.json   TenantRecord
tenants/<tenant>/…             that tenant's slides, models, datasets, jobs
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from shared.contracts.base import Contract
from shared.jobs import Ledger
from shared.settings import Settings
from shared.storage import ObjectStore, open_store

LOCAL = "local"

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=63)]
"""A tenant's name: no dot, which ends it in the ids of jobs."""


class TenantRecord(Contract):
    """What a tenant may use."""

    images_per_day: int | None = Field(None, ge=0, description="None: as many as it likes")
    upload_bytes_per_day: int | None = Field(None, ge=0, description="None: as many as it likes")


def tenant_key(tenant: str) -> str:
    """Key of a tenant's record, in the root of the store."""
    return f"access/tenants/{tenant}.json"


def tenants(root: ObjectStore) -> list[str]:
    """Names of all tenants, the local one first."""
    prefix = tenant_key("").removesuffix(".json")
    names = [key.removeprefix(prefix).removesuffix(".json") for key in root.list(prefix)]
    return [LOCAL, *(name for name in names if name != LOCAL)]


def tenant_ledger(config: Settings, tenant: str) -> Ledger:
    """Open a tenant's part of the store that `config` names."""
    if tenant == LOCAL:
        return Ledger(open_store(config=config))
    store = open_store(f"{config.store.rstrip('/')}/tenants/{tenant}", config)
    return Ledger(store, owner=tenant)


def ledger_of(config: Settings, job: str) -> Ledger:
    """Open the part of the store that a job lies in, by the job's id."""
    owner, dot, _ = job.partition(".")
    return tenant_ledger(config, owner if dot else LOCAL)
