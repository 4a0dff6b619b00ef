"""The end of a job: it is closed once, with all that it made, by its own submission alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shared.contracts.base import Request
from shared.contracts.jobs import Marker
from shared.jobs import (
    Context,
    JobStatus,
    Ledger,
    NoLeases,
    Plan,
    Reporter,
    Shard,
    Stage,
    execute,
    run_job,
    work,
)
from shared.jobs.names import owner
from shared.jobs.records import read_record
from shared.storage import DirectoryStore, StoreView
from tests.unit.test_job_outputs import UNITS, ChainRequest, ChainStage, outcome
from tests.unit.test_job_outputs import work as run_units
from tests.unit.test_jobs import CONFIG, ToyStage


class HookedStore(StoreView):
    """A store in which something happens as soon as the last look of `finish` begins."""

    def __init__(self, inner: DirectoryStore, happens: Callable[[], object]) -> None:
        super().__init__(inner)
        self.happens: Callable[[], object] | None = happens

    def stat(self, key: str) -> Any:
        if self.happens is not None and key == "out/n/chosen":
            happens, self.happens = self.happens, None
            happens()
        return super().stat(key)


def end(store: StoreView | DirectoryStore, job: str) -> JobStatus:
    return run_job(Ledger(store), ChainStage(), job, config=CONFIG)


@pytest.mark.parametrize("how", ["cancelled", "fresh", "deleted"])
def test_a_late_finish_does_not_close_a_newer_submission(tmp_path: Path, how: str) -> None:
    store = DirectoryStore(tmp_path)
    ledger, request = Ledger(store), ChainRequest()
    job = ledger.submit(request)

    def again() -> None:
        if how == "deleted":
            ledger.delete(job)
        else:
            ledger.cancel(job)
            ledger.forget(job, "second")
            store.delete("out/n/second")
            ledger.submit(request, fresh=how == "fresh")

    hooked = HookedStore(store, again)
    run_units(Ledger(hooked), job, [*UNITS, "finish"])
    assert hooked.happens is None
    assert ledger.result(job) is None
    assert ledger.open_jobs() == ([] if how == "deleted" else [job])
    if how == "deleted":
        assert not list(store.list(ledger.key(job, "")))
        return
    assert end(store, job).state == "done"
    assert "out/n/second" in outcome(store)


@pytest.mark.parametrize("key", ["out/n/chosen", "out/n/second", "out/n/record"])
def test_what_is_lost_while_a_job_ends_is_made_again(tmp_path: Path, key: str) -> None:
    store = DirectoryStore(tmp_path)
    job = Ledger(store).submit(ChainRequest())
    assert end(HookedStore(store, lambda: store.delete(key)), job).state == "done"
    assert key in outcome(store)


def test_a_result_of_an_earlier_submission_is_none(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger, request = Ledger(store), ChainRequest()
    job = ledger.submit(request)
    end(store, job)
    old = store.get(ledger.key(job, "result.json"))
    store.delete("out/n/second")
    ledger.submit(request)
    store.put(ledger.key(job, "result.json"), old)
    assert (ledger.status(job).state, ledger.tidy(job)) == ("running", True)
    assert end(store, job).state == "done"
    assert "out/n/second" in outcome(store)


def test_a_marker_that_lands_late_does_not_count(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger, request = Ledger(store), ChainRequest()
    job = ledger.submit(request)
    place = ledger.key(job, "done/second.json")

    class Slow(StoreView):
        def put(self, key: str, data: bytes) -> str:
            if key == place:
                ledger.submit(request, fresh=True)
            return super().put(key, data)

    run_units(Ledger(Slow(store)), job, UNITS[:4])
    assert not store.exists(place)
    assert end(store, job).state == "done"


class ManyRequest(Request):
    """Make objects, one of which is written over an earlier one."""

    stage: ClassVar[str] = "many"

    def products(self) -> list[str]:
        return ["out/many"]


class ManyStage(Stage[ManyRequest]):
    """Writes 20 objects, of which `again` deletes the first and puts it again."""

    name: ClassVar[str] = "many"
    request = ManyRequest

    def plan(self, request: ManyRequest, context: Context) -> Plan:
        return Plan(phases=(tuple(Shard(id=f"n{i}") for i in range(20)), (Shard(id="again"),)))

    def run(self, request: ManyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        name = "n0" if shard.id == "again" else shard.id
        context.store.delete(f"out/many/{name}")
        context.store.put(f"out/many/{name}", shard.id.encode())
        return {}

    def finish(
        self, request: ManyRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        return {"units": len(done)}


def test_many_lost_outputs_are_made_again_at_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger = Ledger(store)
    job = ledger.submit(ManyRequest())
    assert run_job(ledger, ManyStage(), job, config=CONFIG).state == "done"
    marker = read_record(store, ledger.key(job, "done/again.json"), Marker)
    assert (list(marker.outputs), marker.removed) == (["out/many/n0"], ())
    for lost in [["n0"], [f"n{i}" for i in range(20)]]:
        for name in lost:
            store.delete(f"out/many/{name}")
        assert ledger.submit(ManyRequest()) == job
        assert run_job(ledger, ManyStage(), job, config=CONFIG).state == "done"
        made = {key: store.get(key) for key in store.list("out/many/")}
        assert len(made) == 20
        assert made["out/many/n0"] == b"again"


def test_a_unit_of_another_stage_is_left(tmp_path: Path) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    job = ledger.submit(ChainRequest())
    left = execute(
        ledger, ToyStage(), job, "plan", leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    assert (left, ledger.plan(job)) == ([], None)
    assert end(DirectoryStore(tmp_path), job).state == "done"


@pytest.mark.parametrize("name", ["request.json", "plan.json", "open"])
def test_an_unreadable_record_does_not_stop_workers_without_a_queue(
    tmp_path: Path, name: str
) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    bad = ledger.submit(ChainRequest(name="bad"))
    good = ledger.submit(ChainRequest())
    key = f"open-jobs/{bad}" if name == "open" else ledger.key(bad, name)
    ledger.store.put(key, b"\xff\xfe")
    work(ledger, ChainStage(), CONFIG, pause=lambda _: None)
    assert ledger.status(good).state == "done"


def test_names_of_other_programs_below_a_job_are_no_records(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger = Ledger(store)
    job = ledger.submit(ChainRequest())
    run_units(ledger, job, UNITS[:2])
    for name in ("._000-000000.ndjson", "000-000000 (1).ndjson", "a.b.c.ndjson"):
        store.put(ledger.key(job, f"done/{name}"), b"")
    assert end(store, job).state == "done"


def test_a_name_whose_record_is_lost_is_taken_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger = Ledger(store)
    job = ledger.submit(ChainRequest())
    run_units(ledger, job, UNITS[:2])
    for _ in range(2):  # while it runs, and while it is over
        store.delete("names/out/n.json")
        assert ledger.submit(ChainRequest()) == job
        store.delete("names/out/n.json")
        assert end(store, job).state == "done"


class NamesReadOnly(StoreView):
    """A store as workers have it: names may be read."""

    def create(self, key: str, data: bytes) -> bool:
        if key.startswith("names/"):
            raise AssertionError(f"this service may not write {key}")
        return super().create(key, data)


def test_a_worker_goes_on_without_the_record_of_a_name(tmp_path: Path) -> None:
    """Who looks after all jobs takes the name again, as the reconciler does."""
    store = DirectoryStore(tmp_path)
    ledger = Ledger(store)
    job = ledger.submit(ChainRequest())
    run_units(ledger, job, UNITS[:2])
    store.delete("names/out/n.json")
    run_units(Ledger(NamesReadOnly(store)), job, [*UNITS[2:], "finish"])
    assert ledger.status(job).state == "done"
    store.delete("names/out/n.json")
    store.delete("out/n/second")
    assert ledger.submit(ChainRequest()) == job
    store.delete("names/out/n.json")
    assert ledger.tidy(job)
    assert owner(store, "out/n") == job


def test_a_failed_job_without_the_record_of_its_name_is_submitted_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    ledger = Ledger(store)
    job = ledger.submit(ChainRequest())
    run_units(ledger, job, UNITS[:2])
    ledger.close(job, "failed", None)
    store.delete("names/out/n.json")
    assert ledger.submit(ChainRequest()) == job
    assert end(store, job).state == "done"
