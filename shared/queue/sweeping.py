"""Removing what is kept only for a while: single images, and answers to Idempotency-Keys."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.contracts.image import INPUTS, ImageRequest, image_key
from shared.jobs import Ledger

KEYS_KEPT = timedelta(days=7)
KEYS = "idempotency/"


def sweep(ledger: Ledger, images_kept: timedelta, now: datetime) -> int:
    """Remove single images with their jobs and inputs, and records of Idempotency-Keys.

    An image is as old as its job's result, and an input as the last request that brought it.
    Jobs that are open stay.

    Args:
        ledger: of the store.
        images_kept: how long images are kept.
        now: the time that ages are taken at.

    Returns:
        The number of images and records that were removed.
    """
    store, removed = ledger.store, 0
    prefix = ledger.key(f"{ledger.owner}." * bool(ledger.owner) + f"{ImageRequest.stage}-", "")
    for key, date in list(store.dates(prefix.rstrip("/"))):
        if key.endswith("/result.json") and now - date > images_kept:
            job = key.split("/")[1]
            if ledger.is_open(job):
                continue  # asked for again
            store.delete(image_key(str(ledger.request(job)["image"])))
            store.delete_prefix(ledger.key(job, ""))
            removed += 1
    for folder, kept in ((INPUTS, images_kept), (KEYS, KEYS_KEPT)):
        for key, date in list(store.dates(folder)):
            if now - date > kept:
                store.delete(key)
                removed += 1
    return removed
