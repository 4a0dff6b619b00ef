"""Workers that come late write nothing over what a newer submission or another worker has made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from shared.jobs import (
    Context,
    Ledger,
    NoLeases,
    Reporter,
    Shard,
    execute,
    execution,
    names,
    run_job,
)
from shared.storage import Store, StoreView
from tests.toy import ToyRequest, ToyStage
from tests.unit.test_jobs import CONFIG, step


class Overtaken(ToyStage):
    """A toy whose job is submitted again, or deleted, while one of its shards runs."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def run(self, request: ToyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        self.meanwhile()
        return super().run(request, shard, context)


@pytest.mark.parametrize("way", ["fresh", "deleted", "cancelled"])
def test_a_late_worker_writes_nothing_over_a_newer_submission(
    ledger: Ledger, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "CANCEL_CHECK_SECONDS", -1.0)
    request = ToyRequest(parts=1)
    job = ledger.submit(request)
    step(ledger, job, "plan")
    ways: dict[str, Callable[[], object]] = {
        "fresh": lambda: ledger.submit(request, fresh=True),
        "deleted": lambda: ledger.delete(job),
        "cancelled": lambda: ledger.cancel(job),
    }
    execute(
        ledger, Overtaken(ways[way]), job, "square-0", leases=NoLeases(), reporter=Reporter(),
        config=CONFIG,
    )  # fmt: skip
    assert not ledger.is_done(job, "square-0")
    assert not ledger.store.exists("toy/toy/square-0")


class NamedRequest(ToyRequest):
    """A toy whose result takes a name."""

    def products(self) -> list[str]:
        return [f"toy/{self.name}"]


class NamedStage(ToyStage):
    """The stage of such toys; each has its own bytes."""

    request = NamedRequest

    def run(self, request: ToyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        context.store.put("elsewhere/shared", b"shared")
        context.store.put("toy/toy/square-0", request.faults.get("bytes", "same").encode())
        return {"sum": 0}


class PausedInPut(StoreView):
    """A store whose worker is paused in the middle of its put of one object."""

    def __init__(self, inner: Store, key: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(inner)
        self.key, self.meanwhile = key, meanwhile

    def put(self, key: str, data: bytes) -> str:
        if key.endswith(self.key):
            self.key = "none"
            self.meanwhile()
        return super().put(key, data)


@pytest.mark.parametrize("other", ["same", "other", None])
@pytest.mark.parametrize("paused", ["toy/square-0", "done/square-0.json"])
def test_a_put_that_lands_after_its_job_was_deleted_leaves_nothing_wrong(
    ledger: Ledger, paused: str, other: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "CANCEL_CHECK_SECONDS", -1.0)
    job = ledger.submit(NamedRequest(parts=1))
    execute(
        ledger, NamedStage(), job, "plan", leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    made: list[str] = []

    def meanwhile() -> None:
        ledger.delete(job)
        ledger.store.delete_prefix("toy/")
        names.release(ledger.store, "toy/toy")
        if other is not None:
            made.append(ledger.submit(NamedRequest(parts=2, faults={"bytes": other})))
            assert run_job(ledger, NamedStage(), made[0], config=CONFIG).state == "done"

    slow = Ledger(PausedInPut(ledger.store, paused, meanwhile))
    execute(
        slow, NamedStage(), job, "square-0", leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    assert made or other is None
    assert not list(ledger.store.list(ledger.key(job, "")))
    assert ledger.store.get("elsewhere/shared") == b"shared"
    key = "toy/toy/square-0"
    found = ledger.store.get(key) if ledger.store.exists(key) else None
    if paused.startswith("toy") and other != "same":
        assert found is None, "what is gone is made again; what is wrong would stay"
    else:
        assert found == (other and other.encode())


def test_a_worker_that_was_paused_writes_nothing_over_what_another_has_made(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease has ended meanwhile; another GPU may have given other bytes."""
    job = ledger.submit(ToyRequest(parts=1))
    step(ledger, job, "plan")
    later = time.monotonic() + CONFIG.lease_seconds + 1

    def another() -> None:
        step(ledger, job, "square-0")
        ledger.store.put("toy/toy/square-0", b"of another GPU")
        monkeypatch.setattr(execution.time, "monotonic", lambda: later)

    execute(
        ledger, Overtaken(another), job, "square-0", leases=NoLeases(), reporter=Reporter(),
        config=CONFIG,
    )  # fmt: skip
    assert ledger.store.get("toy/toy/square-0") == b"of another GPU"


def test_an_error_of_a_late_worker_is_none_of_the_newer_submission(ledger: Ledger) -> None:
    request = ToyRequest(parts=1, faults={"square-0": "input"})
    job = ledger.submit(request)
    step(ledger, job, "plan")
    for meanwhile in (
        lambda: ledger.submit(request, fresh=True), lambda: ledger.delete(job),
    ):  # fmt: skip
        ledger.submit(request)
        step(ledger, job, "plan")
        execute(
            ledger, Overtaken(meanwhile), job, "square-0", leases=NoLeases(), reporter=Reporter(),
            config=CONFIG,
        )  # fmt: skip
        assert not list(ledger.store.list(ledger.key(job, "failed/")))


def test_the_same_request_while_it_runs_is_no_new_submission(ledger: Ledger) -> None:
    request = ToyRequest(parts=1)
    job = ledger.submit(request)
    before = ledger.snapshot(job).record
    ledger.submit(request)
    assert ledger.snapshot(job).record == before
