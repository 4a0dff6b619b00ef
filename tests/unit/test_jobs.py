"""The job engine, in process: phases, markers, retries, cancelling, resuming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InputError
from shared.jobs import (
    Context,
    JobStatus,
    Ledger,
    NoLeases,
    Plan,
    Reporter,
    Shard,
    execute,
    run_job,
    store_plan,
)
from shared.settings import Settings
from shared.storage import DirectoryStore, ObjectNotFoundError, Store, StoreView
from tests.toy import ToyRequest, ToyStage

CONFIG = Settings(max_failures=3, max_starts=5)


def run(ledger: Ledger, reporter: Reporter | None = None, **fields: Any) -> JobStatus:
    job = ledger.submit(ToyRequest(**fields))
    return run_job(ledger, ToyStage(), job, reporter=reporter, config=CONFIG)


def step(ledger: Ledger, job: str, unit: str) -> list[str]:
    """Run a unit; return the units to queue again, or those of the next phase if it has begun."""
    before = ledger.runnable(job)[0] if ledger.is_open(job) else None
    again = execute(
        ledger, ToyStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    if again or before is None or ledger.runnable(job)[0] == before:
        return again
    return list(ledger.waiting(job))


def test_phases_run_in_order_and_finish_sums_up(ledger: Ledger) -> None:
    status = run(ledger, parts=4)
    assert (status.state, status.done, status.total) == ("done", 6, 6)
    assert status.result == {"sums": [14, 14]}
    assert ledger.open_jobs() == []
    marker = ledger.marker(status.job, "square-3")
    assert set(marker.outputs) == {"toy/toy/square-3"}
    assert len(marker.outputs["toy/toy/square-3"]) == 64


def test_units_say_what_comes_next(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    assert ledger.runnable(job) == (-1, ["plan"])
    assert step(ledger, job, "plan") == ["square-0", "square-1"]
    assert step(ledger, job, "square-1") == []
    assert step(ledger, job, "square-0") == ["sum-a", "sum-b"]
    assert step(ledger, job, "sum-a") == []
    assert step(ledger, job, "sum-b") == ["finish"]
    assert step(ledger, job, "finish") == []
    assert ledger.status(job).state == "done"
    assert step(ledger, job, "square-0") == []


def test_a_unit_that_is_done_does_nothing_twice(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    step(ledger, job, "plan")
    step(ledger, job, "square-0")
    ledger.store.put("toy/toy/square-0", b"untouched")
    assert step(ledger, job, "square-0") == []
    assert ledger.store.get("toy/toy/square-0") == b"untouched"


def test_a_unit_that_another_worker_ends_first_is_not_done_again(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")

    class Slow(NoLeases):
        @contextmanager
        def hold(self, name: str) -> Iterator[bool]:
            step(ledger, job, "square-0")
            yield True

    late = execute(
        ledger, ToyStage(), job, "square-0", leases=Slow(), reporter=Reporter(), config=CONFIG
    )
    assert late == []
    assert ledger.store.get_json(ledger.key(job, "attempts/square-0.json"))["starts"] == 1


def test_the_same_request_is_the_same_job_and_is_not_done_again(ledger: Ledger) -> None:
    first = run(ledger, parts=2)
    before = ledger.store.stat("toy/toy/square-0")
    again = run(ledger, parts=2)
    assert again.job == first.job
    assert ledger.store.stat("toy/toy/square-0") == before
    fresh = ledger.submit(ToyRequest(parts=2), fresh=True)
    run_job(ledger, ToyStage(), fresh, config=CONFIG)
    assert ledger.store.exists("toy/toy/square-0")


def test_other_inputs_make_another_job(ledger: Ledger) -> None:
    class WithInput(ToyRequest):
        def inputs(self) -> list[str]:
            return ["input.json"]

    with pytest.raises(InputError, match=r"needs input\.json"):
        ledger.submit(WithInput())
    ledger.store.put("input.json", b"1")
    first = ledger.submit(WithInput())
    ledger.store.put("input.json", b"2")
    assert ledger.submit(WithInput()) != first


def test_a_flaky_shard_is_tried_again(ledger: Ledger) -> None:
    status = run(ledger, faults={"square-1": "once"})
    assert status.state == "done"
    attempts = ledger.store.get_json(ledger.key(status.job, "attempts/square-1.json"))
    assert attempts["starts"] == 2
    assert [error["error"] for error in attempts["errors"]] == ["flaky"]


def test_a_broken_shard_is_parked_and_stops_later_phases(ledger: Ledger) -> None:
    status = run(ledger, faults={"square-1": "always"})
    assert status.state == "failed"
    assert status.failed == {"square-1": "broken"}
    record = ledger.store.get_json(ledger.key(status.job, "failed/square-1.json"))
    assert record["attempts"] == 3
    assert "RuntimeError" in record["traceback"]
    assert not ledger.store.exists("toy/toy/sum-a")
    assert ledger.open_jobs() == []


def test_bad_input_is_parked_at_once(ledger: Ledger) -> None:
    status = run(ledger, faults={"square-1": "input"})
    attempts = ledger.store.get_json(ledger.key(status.job, "attempts/square-1.json"))
    assert len(attempts["errors"]) == 1
    assert status.failed == {"square-1": "square-1 is bad"}


def test_what_is_missing_may_be_on_its_way(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store behind a cache may show an object a moment after it was listed."""
    job = ledger.submit(ToyRequest(parts=2))
    for unit in ("plan", "square-0", "square-1", "sum-a", "sum-b"):
        step(ledger, job, unit)
    marker, here, asked = ledger.key(job, "done/sum-b.json"), ledger.store.get, list[str]()

    def get(key: str) -> bytes:
        asked.append(key)
        if key == marker and asked.count(marker) == 1:
            raise ObjectNotFoundError(ledger.store, key)
        return here(key)

    monkeypatch.setattr(ledger.store, "get", get)
    assert step(ledger, job, "finish") == ["finish"]
    assert step(ledger, job, "finish") == []
    assert ledger.status(job).state == "done"


def test_what_is_done_is_not_parked_whatever_another_try_came_to(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    ledger.store.put_json(ledger.key(job, "failed/square-0.json"), {"error": "a moment's"})
    ledger.store.put_json(ledger.key(job, "failed/plan.json"), {"error": "a moment's"})
    assert ledger.status(job).failed == {"square-0": "a moment's"}
    step(ledger, job, "square-0")
    assert ledger.status(job).failed == {}
    assert run_job(ledger, ToyStage(), job, config=CONFIG).state == "done"


def test_a_job_is_partial_if_some_of_its_last_phase_failed(ledger: Ledger) -> None:
    status = run(ledger, parts=3, faults={"sum-b": "always"})
    assert status.state == "partial"
    assert status.result == {"sums": [5]}
    assert set(status.failed) == {"sum-b"}


def test_a_plan_that_cannot_be_made_fails_the_job(ledger: Ledger) -> None:
    status = run(ledger, parts=1001)
    assert status.state == "failed"
    assert status.failed == {"plan": "too many parts: at most 1000"}


def test_what_failed_is_tried_again_when_asked_for_again(ledger: Ledger) -> None:
    first = run(ledger, faults={"square-1": "always"})
    assert first.state == "failed"
    kept = ledger.store.get(ledger.key(first.job, "done/square-0.json"))
    job = ledger.submit(ToyRequest(faults={"square-1": "always"}))
    assert ledger.status(job).state == "running"
    assert ledger.runnable(job) == (0, ["square-1"])
    assert ledger.store.get(ledger.key(job, "done/square-0.json")) == kept


def test_a_worker_that_is_always_killed_parks_its_shard(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    step(ledger, job, "plan")
    attempts = {"starts": CONFIG.max_starts, "errors": []}
    ledger.store.put_json(ledger.key(job, "attempts/square-0.json"), attempts)
    step(ledger, job, "square-0")
    assert "its worker was killed" in ledger.status(job).failed["square-0"]


class ListingStage(ToyStage):
    """A toy stage whose plan writes an object that its shards need."""

    def plan(self, request: ToyRequest, context: Context) -> Plan:
        context.store.put("toy/list", b"all")
        return super().plan(request, context)

    def run(self, request: ToyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        context.store.get("toy/list")
        return super().run(request, shard, context)


@pytest.mark.parametrize("failed", [True, False])
def test_what_a_plan_wrote_is_made_again(ledger: Ledger, failed: bool) -> None:
    request = ToyRequest(parts=2)
    job = ledger.submit(request)
    assert run_job(ledger, ListingStage(), job, config=CONFIG).state == "done"
    ledger.store.delete_prefix("toy/")
    if failed:  # as a job ended that lost these objects while it ran
        ledger.store.delete(ledger.key(job, "done/square-0.json"))
        ledger.store.delete(ledger.key(job, "done/plan.json"))
        ledger.store.delete(ledger.key(job, "result.json"))
        ledger.store.put(f"open-jobs/{job}", b"")
        assert run_job(ledger, ListingStage(), job, config=CONFIG).state == "failed"
    assert ledger.submit(request) == job
    assert run_job(ledger, ListingStage(), job, config=CONFIG).state == "done"
    assert ledger.store.get("toy/list") == b"all"
    assert ledger.store.get("toy/toy/square-1") == b"1"


def test_what_is_gone_of_a_partial_or_torn_job_is_made_again(ledger: Ledger) -> None:
    job = run(ledger, parts=3, faults={"sum-b": "input"}).job
    ledger.store.delete("toy/toy/square-2")
    assert ledger.submit(ToyRequest(parts=3, faults={"sum-b": "input"})) == job
    assert ledger.runnable(job) == (0, ["square-2"])
    torn = ledger.submit(ToyRequest(name="torn", parts=2))
    for unit in ("plan", "square-0", "square-1"):
        step(ledger, torn, unit)
    ledger.store.delete_prefix("toy/torn/")
    ledger.submit(ToyRequest(name="torn", parts=2))
    assert ledger.runnable(torn) == (0, ["square-0", "square-1"])


@pytest.mark.parametrize("found", [b"", b"7"])
def test_what_is_damaged_of_a_finished_job_is_made_again(ledger: Ledger, found: bytes) -> None:
    job = run(ledger, parts=3).job
    ledger.store.put("toy/toy/square-1", found)
    ledger.store.put("toy/toy/square-2", b"4")  # the same bytes again
    assert ledger.submit(ToyRequest(parts=3)) == job
    assert ledger.runnable(job) == (0, ["square-1"])
    assert run_job(ledger, ToyStage(), job, config=CONFIG).state == "done"
    assert ledger.store.get("toy/toy/square-1") == b"1"


def test_a_torn_job_goes_on_from_its_markers(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=3))
    step(ledger, job, "plan")
    step(ledger, job, "square-2")
    assert ledger.open_jobs() == [job]
    assert ledger.runnable(job) == (0, ["square-0", "square-1"])
    assert run_job(ledger, ToyStage(), job, config=CONFIG).result == {"sums": [5, 5]}


def test_a_cancelled_job_stops_where_it_is(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.jobs.execution.CANCEL_CHECK_SECONDS", 0.0)

    class CancelsWhenBusy(Reporter):
        def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
            if unit == "square-1":
                ledger.cancel(job)

    status = run(ledger, CancelsWhenBusy(), parts=3, seconds=0.1)
    assert status.state == "cancelled"
    assert ledger.store.exists("toy/toy/square-0")
    assert not ledger.store.exists("toy/toy/square-1")
    assert ledger.open_jobs() == []


def test_what_is_queued_of_a_deleted_job_leaves_nothing_behind(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    assert step(ledger, job, "plan") == ["square-0"]
    ledger.cancel(job)
    ledger.store.delete_prefix(ledger.key(job, ""))
    assert step(ledger, job, "square-0") == []
    assert list(ledger.store.list()) == []


def test_a_job_that_is_deleted_while_jobs_are_listed_is_not_found(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    assert list(ledger.jobs()) == [job]
    assert ledger.find(job) == ledger.status(job)
    ledger.store.delete(ledger.key(job, "request.json"))
    assert ledger.find(job) is None


def test_unknown_jobs_are_named(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no job 'toy-x'"):
        ledger.status("toy-x")


class CountingStore(StoreView):
    """Counts how often each object or folder is read."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.reads: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.reads[key] += 1
        return super().get(key)

    def exists(self, key: str) -> bool:
        self.reads[key] += 1
        return super().exists(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        self.reads[prefix] += 1
        return super().list(prefix)

    def entries(self, prefix: str) -> Iterator[str]:
        self.reads[prefix] += 1
        return super().entries(prefix)


def test_a_status_reads_each_object_once(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2, faults={"square-1": "input"}))
    for unit in ("plan", "square-0", "square-1"):
        step(ledger, job, unit)
    store = CountingStore(ledger.store)
    status = Ledger(store).status(job)
    assert (status.state, status.done, set(status.failed)) == ("running", 1, {"square-1"})
    names = ("request.json", "result.json", "plan.json", "failed/", "done/", "failed/square-1.json")
    assert store.reads == Counter({ledger.key(job, name): 1 for name in names})


def test_records_of_before_are_read(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest())
    old = {"outputs": {}, "result": {"square": 0}, "seconds": 0.1}
    ledger.store.put_json(ledger.key(job, "done/square-0.json"), old)
    assert ledger.marker(job, "square-0").result == {"square": 0}


def test_a_plan_finds_its_shards(tmp_path: Path) -> None:
    plan = store_plan(
        DirectoryStore(tmp_path),
        "j",
        Plan(phases=((Shard(id="a"),), (Shard(id="c"), Shard(id="b")))),
    )
    assert [shard.id for shard in plan] == ["a", "c", "b"]
    assert plan.find("b")[1].id == "b"
    with pytest.raises(KeyError):
        plan.find("d")
