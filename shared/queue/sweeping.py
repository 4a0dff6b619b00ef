"""Removing old objects: single images, and records of Idempotency-Keys."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from shared.contracts.image import INPUTS, ImageRequest, image_key
from shared.jobs import Ledger, UnreadableRecordError

LEFTOVER_AGE = timedelta(days=1)
KEY_LIFETIME = timedelta(days=7)
IDEMPOTENCY_KEYS = "idempotency/"

log = logging.getLogger(__name__)


def sweep(ledger: Ledger, images_kept: timedelta, now: datetime) -> int:
    """Remove old single images with their jobs and inputs, old Idempotency-Keys, and leftovers.

    An image is as old as its job's result; an input is as old as the last request that sent
    it. Open jobs are kept.

    Args:
        ledger: ledger of the store to sweep.
        images_kept: lifetime of images and their inputs.
        now: the present time, from which ages are counted.

    Returns:
        The number of images, inputs and records that were removed.
    """
    store, removed = ledger.store, 0
    prefix = ledger.key(f"{ledger.owner}." * bool(ledger.owner) + f"{ImageRequest.stage}-", "")
    for key, date in list(store.dates(prefix.rstrip("/"))):
        if key.endswith("/result.json") and now - date > images_kept:
            job = key.split("/")[1]
            if ledger.is_open(job):
                continue  # the job was submitted again
            try:
                image = str(ledger.request(job)["image"])
            except (UnreadableRecordError, KeyError):
                log.exception("the image of job %s is not known and stays", job)
            else:
                store.delete(image_key(image))
            ledger.delete(job)
            removed += 1
    for folder, kept in ((INPUTS, images_kept), (IDEMPOTENCY_KEYS, KEY_LIFETIME)):
        for key, date in list(store.dates(folder)):
            if now - date > kept:
                store.delete(key)
                removed += 1
    return removed + store.remove_leftovers(now - LEFTOVER_AGE)
