"""Removing old objects: single images, begun uploads, and records that count for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from pydantic import ValidationError

from shared.contracts.field import FIELD_INPUTS, FieldRequest
from shared.contracts.gateway import UPLOADS, UploadRecord
from shared.contracts.image import INPUTS, ImageRequest, image_key
from shared.contracts.ingest import slide_key
from shared.contracts.tenants import LINKS, SESSIONS
from shared.errors import InputError
from shared.jobs import Ledger, UnreadableRecordError
from shared.storage import Store
from shared.storage.parts import part_upload

LEFTOVER_AGE = timedelta(days=1)
KEY_LIFETIME = timedelta(days=7)
UPLOAD_LIFETIME = timedelta(days=7)
SESSION_LIFETIME = timedelta(days=1)
"""Longer than sessions and the links that begin them last; their own records say how long."""

PARTS = "parts/"
IDEMPOTENCY_KEYS = "idempotency/"

log = logging.getLogger(__name__)


def sweep(ledger: Ledger, images_kept: timedelta, now: datetime) -> int:
    """Remove old single images with their jobs and inputs, and what was begun and left.

    That is: begun uploads, Idempotency-Keys, sessions of browsers, and half-written files. An
    image is as old as its job's result; an input is as old as the last request that sent it. Open
    jobs are kept, and so are their inputs.

    Args:
        ledger: ledger of the store to sweep.
        images_kept: lifetime of images and their inputs.
        now: the present time, from which ages are counted.

    Returns:
        The number of images, inputs and records that were removed.
    """
    store, removed = ledger.store, 0
    prefix = ledger.key(f"{ledger.owner}." * bool(ledger.owner) + f"{ImageRequest.stage}-", "")
    results = _older(store, prefix.rstrip("/"), now - images_kept)
    for key in [key for key in results if key.endswith("/result.json")]:
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
    for key in list(_older(store, UPLOADS, now - UPLOAD_LIFETIME)):
        _give_up(store, key)
        removed += 1
    in_use = _inputs_of_open_jobs(ledger)
    for folder, kept in (
        (INPUTS, images_kept),
        (FIELD_INPUTS, images_kept),
        (IDEMPOTENCY_KEYS, KEY_LIFETIME),
        (PARTS, UPLOAD_LIFETIME),
        (SESSIONS, SESSION_LIFETIME),
        (LINKS, SESSION_LIFETIME),
    ):
        for key in set(_older(store, folder, now - kept)) - in_use:
            store.delete(key)
            removed += 1
    return removed + store.remove_leftovers(now - LEFTOVER_AGE)


def _inputs_of_open_jobs(ledger: Ledger) -> set[str]:
    """Return the keys of the pictures that open jobs of images and fields name."""
    kinds: dict[str, type[FieldRequest | ImageRequest]] = {
        kind.stage: kind for kind in (FieldRequest, ImageRequest)
    }
    used: set[str] = set()
    for job in ledger.open_jobs():
        with suppress(InputError, ValidationError):
            if kind := kinds.get(ledger.stage(job)):
                request = kind.model_validate(ledger.request(job))
                used |= {request.labels or "", *(crop.pixels or "" for crop in request.crops)}
                if isinstance(request, ImageRequest) and request.edit:
                    used |= {request.edit.image, request.edit.area or ""}
    return used


def _older(store: Store, prefix: str, before: datetime) -> Iterator[str]:
    """Yield the keys that start with `prefix` and were last put before a UTC time."""
    return (key for key, date in store.dates(prefix) if date < before)


def _give_up(store: Store, key: str) -> None:
    """Remove a begun upload: its parts, then its record."""
    try:
        record = store.get_model(key, UploadRecord)
        upload = record.upload
        place = slide_key(upload.slide, f"source/{upload.file}")
        part_upload(store, place).abort(record.internal)
    except (InputError, ValidationError):
        log.exception("the parts of %s are gone, or not known", key)
    store.delete(key)
