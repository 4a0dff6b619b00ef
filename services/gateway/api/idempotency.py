"""Idempotency-Key: a request that is sent again with its key does not submit a second job."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from services.gateway.api.problems import ProblemError
from shared.contracts.base import Contract, Request
from shared.queue.sweeping import IDEMPOTENCY_KEYS
from shared.storage import ObjectNotFoundError, Store, sha256

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="random text that a client draws for one submission, and sends again if it "
        "does not know whether the first try arrived",
    ),
]


class Answered(Contract):
    """The stored record of a request with a key: the request's hash, and its job."""

    fingerprint: str
    job: str


def check_key(store: Store, key: str | None, request: Request) -> str | None:
    """Return the job of an earlier submission of the same request with this key, else None.

    Raises:
        ProblemError: the key was used for another request (422).
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


def keep_key(store: Store, key: str | None, request: Request, job: str) -> None:
    """Record the job of a request with a key; without a key, do nothing."""
    if key is not None:
        store.put_json(_key(key), Answered(fingerprint=_fingerprint(request), job=job))


def _key(key: str) -> str:
    return f"{IDEMPOTENCY_KEYS}{sha256(key.encode())}.json"


def _fingerprint(request: Request) -> str:
    return sha256(f"{request.stage}{request.model_dump_json()}".encode())
