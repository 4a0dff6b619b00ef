"""What a worker has written too late, after its job had lost its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shared.contracts.base import Request
from shared.contracts.jobs import Marker, job_key
from shared.errors import CancelledError
from shared.jobs.ledger import Ledger
from shared.jobs.names import Claims, owner
from shared.jobs.reader import CANCELLED
from shared.jobs.records import UnreadableRecordError, write_record
from shared.storage import ObjectNotFoundError, sha256

log = logging.getLogger(__name__)


def take_back(
    ledger: Ledger, request: Request, job: str, unit: str, outputs: Mapping[str, str]
) -> None:
    """Delete what a unit has put below names that its job has lost, unless it is right anyway.

    A put lands late if its worker is paused in the middle of it, until the job was deleted and
    another has made a result of the same name. An object that is gone is noticed and made again,
    but a wrong one would not be. Objects below no name of the result are shared by jobs, and stay.

    Args:
        ledger: of the job.
        request, job, unit: what the worker has run.
        outputs: what it has put too late, key → SHA-256.
    """
    store = ledger.store
    if Claims(store, request, job).owned():
        return
    for name in request.products():
        right = _outputs(ledger, owner(store, name), unit)
        for key, digest in outputs.items():
            if not key.startswith((f"{name}/", f"{name}.")) or right.get(key) == digest:
                continue
            try:
                if sha256(store.get(key)) != digest:
                    continue
            except ObjectNotFoundError:
                continue
            store.delete(key)
            log.warning("%s: %s has put %s too late: it is deleted", job, unit, key)


def put_marker(ledger: Ledger, job: str, submission: str, key: str, marker: Marker) -> None:
    """Mark a unit as done.

    Raises:
        CancelledError: the job was deleted or submitted again meanwhile; no marker is left.
    """
    store = ledger.store
    write_record(store, key, marker)
    present = ledger.opened(job)
    gone = present is None and not store.exists(job_key(job, "request.json"))
    if gone or present not in (None, CANCELLED, submission):
        store.delete(key)
        raise CancelledError(job)


def _outputs(ledger: Ledger, job: str | None, unit: str) -> Mapping[str, str]:
    """Return what a unit of a job has made, key → SHA-256; nothing if it is not done."""
    if not job or (plan := ledger.snapshot(job).plan) is None:
        return {}
    try:
        return ledger.marker_at(job, plan.find(unit)[0], unit).outputs
    except (KeyError, ObjectNotFoundError, UnreadableRecordError):
        return {}
