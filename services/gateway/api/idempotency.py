"""Idempotency-Key: a request that is sent again gets the same answer and has no second effect."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from services.gateway.api.problems import ProblemError
from shared.contracts.base import Contract, Request
from shared.queue.sweeping import IDEMPOTENCY_KEYS
from shared.storage import ObjectNotFoundError, ObjectStore, sha256

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="drawn by the client for one submission; sent again when it is not known "
        "whether the first try arrived",
    ),
]


class Answered(Contract):
    """The record of a request that had a key."""

    fingerprint: str
    job: str


def check_key(store: ObjectStore, key: str | None, request: Request) -> str | None:
    """Return the job that the same request with this key was answered with, if there was one.

    Raises:
        ProblemError: 422, the key was used for another request.
    """
    if key is None:
        return None
    try:
        answered = store.get_model(_key(key), Answered)
    except ObjectNotFoundError:
        return None
    if answered.fingerprint != _fingerprint(request):
        raise ProblemError(
            422,
            "idempotency-key-reused",
            "this Idempotency-Key was sent before, with another request",
            remedy="draw a new key for every new request",
        )
    return answered.job


def keep_key(store: ObjectStore, key: str | None, request: Request, job: str) -> None:
    """Record the answer to a request with a key."""
    if key is not None:
        store.put_json(_key(key), Answered(fingerprint=_fingerprint(request), job=job))


def _key(key: str) -> str:
    return f"{IDEMPOTENCY_KEYS}{sha256(key.encode())}.json"


def _fingerprint(request: Request) -> str:
    return sha256(f"{request.stage}{request.model_dump_json()}".encode())
