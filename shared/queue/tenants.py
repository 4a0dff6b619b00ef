"""The ledgers of tenants.

The id of a tenant's job starts with the tenant's name and a dot, except for the local
tenant's. Queue messages, leases and progress name jobs by their ids, so a worker finds the
part of the store that a job lies in by its id alone.
"""

from __future__ import annotations

from shared.contracts.tenants import LOCAL, tenant_key
from shared.jobs import Ledger
from shared.settings import Settings
from shared.storage import ObjectStore, open_store


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
