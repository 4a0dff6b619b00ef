"""Idempotency-Key: a request that is sent again with its key does not submit a second job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from threading import Lock
from typing import Annotated

from fastapi import Header
from pydantic import Field

from services.gateway.api.problems import ProblemError
from shared.contracts.base import Contract, Request
from shared.queue.sweeping import IDEMPOTENCY_KEYS
from shared.storage import ObjectNotFoundError, Store, sha256

LOST = timedelta(minutes=1)
"""Age at which an unfinished submission counts as that of a gateway that has died."""

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
    """The stored record of a request with a key: the request's hash, and its job.

    The record is created before the job, so that of several requests with a key one is accepted.
    """

    fingerprint: str
    job: str | None
    begun: datetime | None = None
    draw: str = Field("", description="random text, so that no two records are equal")


@dataclass
class Claim:
    """A key's job: that of an earlier submission, or None until the holder has submitted one."""

    job: str | None


_busy: set[tuple[str, str]] = set()  # keys that this process is submitting; rclone has no create
_lock = Lock()


@contextmanager
def claimed(store: Store, key: str | None, request: Request) -> Iterator[Claim]:
    """Hold an Idempotency-Key while a request is submitted; a refused request gives it back.

    Args:
        store: the tenant's store.
        key: the key; None: the request has none.
        request: the request.

    Raises:
        ProblemError: the key was sent with another request (422), or the same request is being
            submitted at this moment (409).
    """
    if key is None:
        yield Claim(None)
        return
    place = f"{IDEMPOTENCY_KEYS}{sha256(key.encode())}.json"
    with _alone(store.url, place):
        claim = _claim(store, place, request)
        mine = claim.job is None
        try:
            yield claim
        except BaseException:
            if mine:
                store.delete(place)
            raise
        if mine:
            store.put_json(place, Answered(fingerprint=_fingerprint(request), job=claim.job))


@contextmanager
def _alone(url: str, place: str) -> Iterator[None]:
    with _lock:
        if (url, place) in _busy:
            raise _in_progress()
        _busy.add((url, place))
    try:
        yield
    finally:
        _busy.discard((url, place))


def _claim(store: Store, place: str, request: Request) -> Claim:
    now, fingerprint = datetime.now(UTC), _fingerprint(request)
    record = Answered(fingerprint=fingerprint, job=None, begun=now, draw=token_hex(8))
    if store.create(place, record.model_dump_json().encode()):
        return Claim(None)
    try:
        answered = store.get_model(place, Answered)
    except ObjectNotFoundError as error:  # the other request was refused just now
        raise _in_progress() from error
    if answered.fingerprint != fingerprint:
        raise ProblemError(
            422,
            "idempotency-key-reused",
            "this Idempotency-Key was sent before, with another request",
            remedy="draw a new key for every new request",
        )
    if answered.job is None:
        if answered.begun is not None and now - answered.begun < LOST:
            raise _in_progress()
        store.put_json(place, record)  # the gateway that held it has died
    return Claim(answered.job)


def _in_progress() -> ProblemError:
    return ProblemError(
        409,
        "busy",
        "a request with this Idempotency-Key is being submitted at this moment",
        remedy="send the request again",
        headers={"Retry-After": "1"},
    )


def _fingerprint(request: Request) -> str:
    return sha256(f"{request.stage}{request.model_dump_json()}".encode())
