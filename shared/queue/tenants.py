"""The ledgers of tenants.

The id of a tenant's job starts with the tenant's name and a dot, except for the local
tenant's. Queue messages, leases and progress name a job by its id, from which a worker knows
the part of the store that holds the job.
"""

from __future__ import annotations

from shared.contracts.tenants import LOCAL, tenant_key
from shared.jobs import Ledger
from shared.settings import Settings
from shared.storage import Store, open_store


def tenants(root: Store) -> list[str]:
    """Return the names of all tenants, the local one first."""
    prefix = tenant_key("").removesuffix(".json")
    names = [key.removeprefix(prefix).removesuffix(".json") for key in root.list(prefix)]
    return [LOCAL, *(name for name in names if name != LOCAL)]


def tenant_ledger(config: Settings, tenant: str) -> Ledger:
    """Open the ledger of a tenant's part of the store that `config` names."""
    if tenant == LOCAL:
        return Ledger(open_store(config=config))
    store = open_store(f"{config.store.rstrip('/')}/tenants/{tenant}", config)
    return Ledger(store, owner=tenant, open_root=lambda: open_store(config=config))


def tenant_of(job: str) -> str:
    """Return the name of the tenant that a job belongs to, by the job's id."""
    owner, dot, _ = job.partition(".")
    return owner if dot else LOCAL


def ledger_of(config: Settings, job: str) -> Ledger:
    """Open the ledger that holds a job, by the job's id."""
    return tenant_ledger(config, tenant_of(job))
