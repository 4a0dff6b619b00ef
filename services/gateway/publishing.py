"""The number of a model's next publishing."""

from __future__ import annotations

from shared.contracts.serving import PublishRequest
from shared.jobs import Ledger
from shared.metrics import stage_of
from shared.serving.record import served


def next_number(ledger: Ledger, model: str) -> int:
    """Return a number that no publishing of a model has, be it done, waiting, or to be retried."""
    known = [each.number for each in served(ledger.store, model)]
    for job in ledger.jobs():
        if stage_of(job) == PublishRequest.stage:
            request = ledger.request(job)
            known += [int(request["number"])] if request["model"] == model else []
    return max(known, default=0) + 1
