"""The records of a model's deployments on Triton."""

from __future__ import annotations

from contextlib import suppress

from shared.contracts.deploy import Deployment, DeployRequest, deployments_prefix
from shared.jobs import Ledger, stage_of
from shared.storage import ObjectNotFoundError, Store


def deployments(store: Store, model: str) -> list[Deployment]:
    """Return a model's deployments, sorted by number; the last one is in use."""
    records = []
    for key in store.list(deployments_prefix(model)):
        with suppress(ObjectNotFoundError):  # deleted since the listing
            records.append(store.get_model(key, Deployment))
    return sorted(records, key=lambda each: each.number)


def next_number(ledger: Ledger, model: str) -> int:
    """Return a number above those of all deployments of a model: done, waiting and failed."""
    known = [each.number for each in deployments(ledger.store, model)]
    for job in ledger.jobs():
        if stage_of(job) == DeployRequest.stage:
            request = ledger.request(job)
            known += [int(request["number"])] if request["model"] == model else []
    return max(known, default=0) + 1
