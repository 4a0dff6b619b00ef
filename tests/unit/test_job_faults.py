"""Jobs under faults: what comes early, breaks off or is damaged costs time alone."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from shared.errors import HandedBackError, InputError, UnavailableError
from shared.jobs import Context, Ledger, NoLeases, Reporter, Shard, execute, run_job
from shared.jobs.execution import Wait
from shared.storage import DirectoryStore, Store, StoreView, directory, is_fault
from tests.chaos.stage import ChaosRequest, ChaosStage
from tests.toy import ToyRequest, ToyStage
from tests.unit.test_jobs import CONFIG, run, step


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


@pytest.mark.parametrize("damaged", ["toy/toy/square-1", "jobs/{job}/done/square-1.json"])
def test_a_damaged_output_is_made_again_by_the_phase_that_reads_it(
    ledger: Ledger, damaged: str
) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    for unit in ("plan", "square-0", "square-1"):
        step(ledger, job, unit)
    ledger.store.put(damaged.format(job=job), b"7")
    assert step(ledger, job, "sum-a") == ["square-1"]
    assert step(ledger, job, "square-1") == ["sum-a", "sum-b"]
    status = run_job(ledger, ToyStage(), job, config=CONFIG)
    assert (status.state, status.result) == ("done", {"sums": [1, 1]})


def test_finish_has_a_unit_with_a_damaged_marker_run_again(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    for unit in ("plan", "square-0", "sum-a", "sum-b"):
        step(ledger, job, unit)
    ledger.store.put(ledger.key(job, "done/sum-b.json"), b"\x00\xff")
    assert step(ledger, job, "finish") == ["sum-b"]
    assert run_job(ledger, ToyStage(), job, config=CONFIG).result == {"sums": [0, 0]}


@pytest.mark.parametrize("change", ["gone", "other"])
def test_what_a_later_phase_finds_gone_or_changed_is_made_again(
    ledger: Ledger, change: str
) -> None:
    request = ChaosRequest(dataset="d", images=4, seconds=0)
    job = ledger.submit(request)
    ways = {"gone": ledger.store.delete, "other": lambda key: ledger.store.put(key, b"[]")}
    for unit in ("plan", "shard-000000", "shard-000001"):
        execute(
            ledger, ChaosStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG
        )
    ways[change]("datasets/d/rows/shard-000001.json")
    status = run_job(ledger, ChaosStage(), job, config=CONFIG)
    assert (status.state, status.result) == ("done", {"images": 4})
    assert len(ledger.store.get_json("datasets/d/rows/shard-000001.json")) == 2


def test_a_job_that_is_neither_open_nor_over_is_opened_again(ledger: Ledger) -> None:
    over, lost, open_ = (ledger.submit(ToyRequest(name=name, parts=1)) for name in "abc")
    run_job(ledger, ToyStage(), over, config=CONFIG)
    step(ledger, lost, "plan")
    ledger.store.delete(f"open-jobs/{lost}")
    assert ledger.reopen_lost() == [lost]
    assert ledger.open_jobs() == sorted([lost, open_])


class Stopped(ToyStage):
    """A toy whose worker is told to end during every shard."""

    def run(self, request: ToyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        raise HandedBackError


def test_a_worker_that_is_told_to_end_is_no_failed_start(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=1))
    step(ledger, job, "plan")
    for _ in range(CONFIG.max_starts + 2):
        with pytest.raises(HandedBackError):
            execute(
                ledger, Stopped(), job, "square-0", leases=NoLeases(), reporter=Reporter(),
                config=CONFIG,
            )  # fmt: skip
    assert run_job(ledger, ToyStage(), job, config=CONFIG).state == "done"


class Torn(StoreView):
    """A store whose process dies at one of its changes: that change and later ones are lost."""

    def __init__(self, inner: Store, changes: int) -> None:
        super().__init__(inner)
        self.left = changes

    def _change(self) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1

    def put(self, key: str, data: bytes) -> str:
        self._change()
        return super().put(key, data)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)


WAYS: dict[str, Callable[[Ledger, str, ToyRequest], object]] = {
    "cancel": lambda ledger, job, _: ledger.cancel(job),
    "delete": lambda ledger, job, _: ledger.delete(job),
    "submit": lambda ledger, _, request: ledger.submit(request),
    "fresh": lambda ledger, _, request: ledger.submit(request, fresh=True),
}


@pytest.mark.parametrize("begun", ["running", "done", "partial", "cancelled"])
def test_what_breaks_off_at_any_change_heals_when_it_is_asked_for_again(
    tmp_path: Path, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_sync", lambda path: None)  # the test loses no power
    before = Ledger(DirectoryStore(tmp_path / "before"))
    request = ToyRequest(parts=1, faults={"sum-b": "always"} if begun == "partial" else {})
    job = before.submit(request)
    if begun in {"running", "cancelled"}:
        step(before, job, "plan")
        step(before, job, "square-0")
        if begun == "cancelled":
            before.cancel(job)
    else:
        run_job(before, ToyStage(), job, config=CONFIG)
    for way, ask in WAYS.items():
        for changes in itertools.count():
            place = tmp_path / way / str(changes)
            shutil.copytree(tmp_path / "before", place)
            ledger = Ledger(DirectoryStore(place))
            torn, broke_off = Torn(ledger.store, changes), False
            try:
                ask(Ledger(torn), job, request)
            except KeyboardInterrupt:
                broke_off = True
            ask(ledger, job, request)
            if way == "delete":
                assert list(ledger.store.list("jobs/")) == ledger.open_jobs() == []
            elif way == "cancel":
                assert ledger.status(job).state == ("cancelled" if begun == "running" else begun)
                assert not ledger.is_open(job)
            else:
                end = "partial" if begun == "partial" else "done"
                assert run_job(ledger, ToyStage(), job, config=CONFIG).state == end
            if not broke_off:
                break


def test_a_cancellation_that_broke_off_is_completed(ledger: Ledger) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    ledger.store.put(f"open-jobs/{job}", b"cancelled")
    assert step(ledger, job, "square-0") == []
    assert ledger.status(job).state == "cancelled"
    assert ledger.open_jobs() == []


def test_who_asks_again_after_a_cancellation_that_broke_off_gets_the_result(
    ledger: Ledger,
) -> None:
    job = ledger.submit(ToyRequest(parts=2))
    step(ledger, job, "plan")
    ledger.store.put(f"open-jobs/{job}", b"cancelled")
    ledger.submit(ToyRequest(parts=2))
    assert run_job(ledger, ToyStage(), job, config=CONFIG).state == "done"


def test_a_closing_that_broke_off_leaves_the_job_closed(ledger: Ledger) -> None:
    status = run(ledger, parts=1, faults={"square-0": "input"})
    ledger.store.put(f"open-jobs/{status.job}", b"")  # closing removes this last
    assert not ledger.is_open(status.job)
    assert step(ledger, status.job, "finish") == []
    assert not ledger.tidy(status.job)
    assert ledger.open_jobs() == []
    again = ledger.submit(ToyRequest(parts=1, faults={"square-0": "input"}))
    assert ledger.is_open(again)
    assert ledger.tidy(again)


def test_an_open_job_without_a_record_is_forgotten(ledger: Ledger) -> None:
    ledger.store.put("open-jobs/toy-0123456789abcdef", b"")
    assert not ledger.tidy("toy-0123456789abcdef")
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
    fresh = ledger.submit(ToyRequest(name="broken"))
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

    def put(self, key: str, data: bytes) -> str:
        if key.startswith(self.prefix) and self.errors:
            raise self.errors.pop()
        return super().put(key, data)


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
