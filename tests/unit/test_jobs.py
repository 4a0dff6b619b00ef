"""The job engine, in process: phases, markers, retries, cancelling, resuming."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from shared.errors import InputError, UnavailableError
from shared.jobs import (
    Context,
    JobStatus,
    Ledger,
    NoLeases,
    Plan,
    Reporter,
    Shard,
    execute,
    execution,
    run_job,
)
from shared.jobs.execution import Wait
from shared.settings import Settings
from shared.storage import DirectoryStore, ObjectNotFoundError, Store, StoreView, is_fault
from tests.toy import ToyRequest, ToyStage

CONFIG = Settings(max_failures=3, max_starts=5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(DirectoryStore(tmp_path))


def run(ledger: Ledger, reporter: Reporter | None = None, **fields: Any) -> JobStatus:
    job = ledger.submit(ToyRequest(**fields))
    return run_job(ledger, ToyStage(), job, reporter=reporter, config=CONFIG)


def step(ledger: Ledger, job: str, unit: str) -> list[str]:
    return execute(
        ledger, ToyStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )


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
    assert step(ledger, job, "square-0") == ["sum-a", "sum-b"]
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


def test_a_finished_job_is_taken_up_again_from_some_shards(ledger: Ledger) -> None:
    job = run(ledger, parts=2).job
    squares = ledger.store.get(ledger.key(job, "done/square-1.json"))
    ledger.store.put("toy/toy/square-1", b"7")
    ledger.reopen(job, "sum-")
    assert ledger.open_jobs() == [job]
    assert ledger.runnable(job) == (1, ["sum-a", "sum-b"])
    assert run_job(ledger, ToyStage(), job, config=CONFIG).result == {"sums": [7, 7]}
    assert ledger.store.get(ledger.key(job, "done/square-1.json")) == squares


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


def test_a_plan_finds_its_shards() -> None:
    plan = Plan(phases=((Shard(id="a"),), (Shard(id="b"), Shard(id="c"))))
    assert [shard.id for shard in plan.shards] == ["a", "b", "c"]
    assert plan.shard("b") is plan.phases[1][0]
    with pytest.raises(KeyError):
        plan.shard("d")


def test_a_finish_that_comes_early_does_not_end_the_job(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    step(ledger, job, "square-0")
    assert step(ledger, job, "finish") == []
    assert ledger.status(job).state == "running"
    status = run_job(ledger, ToyStage(), job, config=CONFIG)
    assert (status.state, status.done, status.result) == ("done", 4, {"sums": [1, 1]})


@pytest.mark.parametrize("unit", ["sum-a", "square-7", "finish"])
def test_a_unit_whose_turn_has_not_come_is_left(ledger: Ledger, unit: str) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    assert step(ledger, job, unit) == []
    assert ledger.done(job) == {"plan"}
    assert not list(ledger.store.list(ledger.key(job, "attempts/sum")))


def test_a_cancellation_that_broke_off_is_completed(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    ledger.store.put(ledger.key(job, "cancelled"), b"")
    assert step(ledger, job, "square-0") == []
    assert ledger.status(job).state == "cancelled"
    assert ledger.open_jobs() == []


def test_a_closing_that_broke_off_leaves_the_job_closed(ledger: Ledger) -> None:
    status = run(ledger, parts=1, faults={"square-0": "input"})
    ledger.store.put(f"open-jobs/{status.job}", b"")  # closing removes this last
    assert not ledger.is_open(status.job)
    assert step(ledger, status.job, "finish") == []
    assert ledger.forget_closed(status.job)
    assert ledger.open_jobs() == []
    again = ledger.submit(ToyRequest(parts=1, faults={"square-0": "input"}))
    assert ledger.is_open(again)
    assert not ledger.forget_closed(again)


def test_an_open_job_without_a_record_is_forgotten(ledger: Ledger) -> None:
    ledger.store.put("open-jobs/toy-0123456789abcdef", b"")
    assert ledger.forget_closed("toy-0123456789abcdef")
    assert ledger.open_jobs() == []


@pytest.mark.parametrize("name", ["request.json", "plan.json", "result.json"])
def test_an_unreadable_record_fails_its_job_and_no_other(ledger: Ledger, name: str) -> None:
    broken = run(ledger, name="broken").job
    good = run(ledger, name="good").job
    ledger.store.put(ledger.key(broken, name), b"{")
    found = {job: ledger.find(job) for job in ledger.jobs()}
    states = {job: (each.stage, each.state) for job, each in found.items() if each}
    assert states == {good: ("toy", "done"), broken: ("toy", "failed")}
    assert all(word in ledger.status(broken).failed["record"] for word in (name, "restore it"))
    fresh = ledger.submit(ToyRequest(name="broken"), fresh=True)
    assert run_job(ledger, ToyStage(), fresh, config=CONFIG).state == "done"


def test_unreadable_attempts_do_not_stop_a_unit(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    step(ledger, job, "plan")
    ledger.store.put(ledger.key(job, "attempts/square-0.json"), b"")
    assert step(ledger, job, "square-0") == ["sum-a", "sum-b"]


class Faulty(StoreView):
    """A store whose puts below a prefix fail some times before they succeed."""

    def __init__(self, inner: Store, prefix: str, errors: list[Exception]) -> None:
        super().__init__(inner)
        self.prefix, self.errors = prefix, errors

    def put(self, key: str, data: bytes) -> None:
        if key.startswith(self.prefix) and self.errors:
            raise self.errors.pop()
        super().put(key, data)


def run_unit(ledger: Ledger, job: str, unit: str, wait: Wait | None) -> None:
    execute(
        ledger, ToyStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG,
        wait=wait,
    )  # fmt: skip


@pytest.mark.parametrize("place", ["toy/toy/square-0", "jobs/"])
def test_a_fault_of_the_world_is_waited_for_and_parks_nothing(tmp_path: Path, place: str) -> None:
    faults: list[Exception] = [
        OSError(errno.ENOSPC, "no space left"), ConnectionRefusedError("the store is away"),
        MaxRetryError(HTTPConnectionPool("s3"), "/", None), UnavailableError("Triton is away"),
        OSError(errno.EROFS, "read-only file system"),
    ]  # fmt: skip
    inner = DirectoryStore(tmp_path)
    job = Ledger(inner).submit(ToyRequest(parts=1))
    run_unit(Ledger(inner), job, "plan", None)
    ledger = Ledger(Faulty(inner, place, list(faults)))
    waited: list[tuple[Exception, int]] = []
    run_unit(ledger, job, "square-0", lambda error, waits: waited.append((error, waits)))
    assert waited == [(error, number) for number, error in enumerate(reversed(faults))]
    assert inner.get("toy/toy/square-0") == b"0"
    attempts = inner.get_json(ledger.key(job, "attempts/square-0.json"))
    assert attempts == {"starts": 1, "errors": []}


def test_without_a_queue_a_fault_is_raised_and_the_job_goes_on_later(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path)
    ledger = Ledger(Faulty(inner, "toy/", [OSError(errno.ENOSPC, "no space left")]))
    job = ledger.submit(ToyRequest(parts=2))
    with pytest.raises(OSError, match="no space left"):
        run_job(ledger, ToyStage(), job, config=CONFIG)
    assert ledger.status(job).state == "running"
    assert run_job(ledger, ToyStage(), job, config=CONFIG).state == "done"


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "gone"), InputError("bad"),
     PermissionError(errno.EACCES, "no")],
)  # fmt: skip
def test_other_errors_are_no_faults_of_the_world(error: Exception) -> None:
    assert not is_fault(error)


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
        "deleted": lambda: ledger.store.delete_prefix(ledger.key(job, "")),
        "cancelled": lambda: ledger.cancel(job),
    }
    execute(
        ledger, Overtaken(ways[way]), job, "square-0", leases=NoLeases(), reporter=Reporter(),
        config=CONFIG,
    )  # fmt: skip
    assert not ledger.is_done(job, "square-0")
    assert not ledger.store.exists("toy/toy/square-0")


def test_the_same_request_while_it_runs_is_no_new_submission(ledger: Ledger) -> None:
    request = ToyRequest(parts=1)
    job = ledger.submit(request)
    before = ledger.snapshot(job).record
    ledger.submit(request)
    assert ledger.snapshot(job).record == before
