"""Jobs whose plans are cut into segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shared.contracts.base import Request
from shared.jobs import (
    Context,
    Ledger,
    NoLeases,
    Plan,
    Reporter,
    Shard,
    Stage,
    execute,
    execution,
    markers,
    plan,
    run_job,
    store_plan,
)  # fmt: skip
from shared.storage import DirectoryStore, Store, StoreView, directory
from tests.unit.test_jobs import CONFIG, CountingStore


class LongRequest(Request):
    """Write `parts` numbers, then sum them up by tens."""

    stage: ClassVar[str] = "long"
    name: str = "long"
    parts: int = 25
    bad: tuple[int, ...] = ()

    def products(self) -> list[str]:
        return [f"out/{self.name}"]

    def revises(self, earlier: Request) -> bool:
        return isinstance(earlier, LongRequest)


class LongStage(Stage[LongRequest]):
    """A stage of two phases; the first is planned by an iterator."""

    name: ClassVar[str] = "long"
    request = LongRequest

    def __init__(self) -> None:
        self.ran: list[str] = []

    def plan(self, request: LongRequest, context: Context) -> Plan:
        def ones() -> Iterator[Shard]:
            for i in range(request.parts):
                reads = {"i": str(i), "name": request.name}
                yield Shard(id=f"one-{i:04d}", args={"i": i}, size=i % 3, reads=reads)

        tens = [
            Shard(
                id=f"ten-{n}",
                args={"n": n},
                after=tuple(f"one-{i:04d}" for i in range(n, min(n + 10, request.parts))),
            )
            for n in range(0, request.parts, 10)
        ]
        return Plan(phases=(ones(), tens))

    def run(self, request: LongRequest, shard: Shard, context: Context) -> dict[str, Any]:
        self.ran.append(shard.id)
        if "n" in shard.args:
            keys = [f"out/{request.name}/{unit}" for unit in shard.after]
            total = sum(int(context.store.get(key)) for key in keys)
            context.store.put(f"out/{request.name}/{shard.id}", str(total).encode())
            return {"total": total}
        number = int(str(shard.args["i"]))
        if number in request.bad:
            raise RuntimeError("bad")
        context.store.put(f"out/{request.name}/{shard.id}", str(number).encode())
        return {"number": number}

    def finish(
        self, request: LongRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        totals = [part["total"] for part in done.values() if "total" in part]
        key = f"out/{request.name}/ten-{10 * (len(totals) - 1)}"
        return {"total": sum(totals), "units": len(done), "last": int(context.store.get(key))}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    for module in (plan, execution, markers):
        monkeypatch.setattr(module, "SEGMENT", 10)
    monkeypatch.setattr(directory, "_sync", lambda path: None)
    return Ledger(DirectoryStore(tmp_path))


def run(ledger: Ledger, stage: LongStage | None = None, **fields: Any) -> Any:
    job = ledger.submit(LongRequest(**fields))
    return run_job(ledger, stage or LongStage(), job, config=CONFIG)


def step(ledger: Ledger, job: str, unit: str) -> list[str]:
    return execute(
        ledger, LongStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )


def test_a_long_plan_gives_the_result_of_a_short_one(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = run(ledger)
    assert (long.state, long.done, long.total, long.phases) == ("done", 28, 28, 2)
    assert long.result == {"total": 300, "units": 28, "last": 20 + 21 + 22 + 23 + 24}
    names = set(ledger.store.entries(ledger.key(long.job, "done/")))
    assert {name for name in names if name.endswith(".ndjson")} == {
        "000-000000.ndjson", "000-000001.ndjson", "000-000002.ndjson", "001-000000.ndjson",
    }  # fmt: skip
    monkeypatch.setattr(plan, "SEGMENT", 1000)
    short = Ledger(DirectoryStore(tmp_path / "short"))
    assert run(short).result == long.result
    assert not list(short.store.list(short.key(long.job, "plan/")))
    assert set(short.store.list("out/")) == set(ledger.store.list("out/"))


def test_large_shards_of_a_segment_go_first(ledger: Ledger) -> None:
    stage = LongStage()
    run(ledger, stage)
    assert stage.ran[:4] == ["one-0002", "one-0005", "one-0008", "one-0001"]


def test_a_segment_with_a_parked_shard_is_summed_up_and_tried_again(ledger: Ledger) -> None:
    failed = run(ledger, bad=(3,))
    assert (failed.state, failed.failed, failed.done) == ("failed", {"one-0003": "bad"}, 24)
    names = set(ledger.store.entries(ledger.key(failed.job, "done/")))
    assert {"000-000000.1.ndjson", "000-000001.ndjson"} <= names
    job = ledger.submit(LongRequest(bad=(3,)))
    assert ledger.runnable(job) == (0, ["one-0003"])
    for unit in ("one-0003",) * 3:
        step(ledger, job, unit)
    assert list(ledger.waiting(job)) == ["finish"]
    again = execute(
        ledger, Mended(), job, "one-0003", leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    assert again == []
    assert list(ledger.waiting(job)) == ["ten-0", "ten-10", "ten-20"]


class Mended(LongStage):
    """The stage, where nothing is bad any more."""

    def run(self, request: LongRequest, shard: Shard, context: Context) -> dict[str, Any]:
        return super().run(request.model_copy(update={"bad": ()}), shard, context)


def test_a_damaged_output_of_a_long_job_is_made_again(ledger: Ledger) -> None:
    job = ledger.submit(LongRequest())
    for unit in ("plan", *(f"one-{i:04d}" for i in range(25))):
        step(ledger, job, unit)
    assert list(ledger.waiting(job)) == ["ten-0", "ten-10", "ten-20"]
    ledger.store.put("out/long/one-0012", b"7")
    assert step(ledger, job, "ten-10") == ["one-0012"]
    assert list(ledger.waiting(job)) == ["one-0012"]
    assert step(ledger, job, "ten-0") == [], "its turn has not come"
    assert not ledger.is_done(job, "ten-0")
    status = run_job(ledger, LongStage(), job, config=CONFIG)
    assert (status.state, status.result["total"]) == ("done", 300)  # type: ignore[index]


def open_again(ledger: Ledger, job: str, *units: str) -> None:
    """Open a job that has ended, as if it had broken off before its end and before some units."""
    for unit in units:
        ledger.forget(job, unit)
    ledger.store.delete(ledger.key(job, "result.json"))
    assert ledger.reopen_lost() == [job]


def test_finish_of_a_long_job_has_what_is_gone_made_again(ledger: Ledger) -> None:
    job = ledger.submit(LongRequest())
    done = run_job(ledger, LongStage(), job, config=CONFIG)
    open_again(ledger, job)
    ledger.store.delete("out/long/ten-20")
    status = run_job(ledger, LongStage(), job, config=CONFIG)
    assert (status.state, status.result) == ("done", done.result)


@pytest.mark.parametrize("lost", ["markers", "records", "a record"])
def test_markers_and_their_sums_stand_in_for_each_other(ledger: Ledger, lost: str) -> None:
    job = run(ledger).job
    for key in list(ledger.store.list(ledger.key(job, "done/0"))):
        if key.endswith(".json") == (lost == "markers") and lost != "a record":
            ledger.store.delete(key)
    if lost == "a record":
        ledger.store.put(ledger.key(job, "done/000-000001.ndjson"), b'{"unit": "one-0011"}\n')
    open_again(ledger, job, "ten-0", "ten-10", "ten-20")
    stage = LongStage()
    assert run_job(ledger, stage, job, config=CONFIG).result["total"] == 300  # type: ignore[index]
    assert stage.ran == ["ten-0", "ten-10", "ten-20"]


def test_what_is_gone_of_a_long_job_is_made_again(ledger: Ledger) -> None:
    run(ledger)
    ledger.store.delete("out/long/one-0007")
    stage = LongStage()
    assert run(ledger, stage).result["total"] == 300
    assert stage.ran == ["one-0007"]


def test_a_longer_job_keeps_the_shards_of_a_shorter_one(ledger: Ledger) -> None:
    run(ledger, parts=8)
    stage = LongStage()
    assert run(ledger, stage, parts=25).result["total"] == 300
    ones = [unit for unit in stage.ran if unit.startswith("one")]
    assert sorted(ones) == [f"one-{i:04d}" for i in range(8, 25)]


def test_a_long_job_is_asked_for_with_few_requests(ledger: Ledger) -> None:
    job = ledger.submit(LongRequest(parts=95))
    for unit in ("plan", *(f"one-{i:04d}" for i in range(55))):
        step(ledger, job, unit)
    assert next(ledger.waiting(job)) == "one-0056"
    store = CountingStore(ledger.store)
    status = Ledger(store).status(job)
    assert (status.done, status.total, status.phase) == (55, 105, 0)
    assert store.reads.total() <= 7, store.reads
    store = CountingStore(ledger.store)
    counted = Ledger(store)
    step(counted, job, "one-0056")
    store.reads.clear()
    step(counted, job, "one-0057")
    assert store.reads.total() <= 6, store.reads


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        ((iter([Shard(id=f"s{i}") for i in (2, 1, *range(3, 30))]),), "ascend"),
        (([Shard(id=f"s{i}") for i in (*range(20), 3)],), "must differ"),
        (([Shard(id=f"s{i}") for i in range(20)], [Shard(id="s3")]), "must differ"),
        (([Shard(id=f"s{i}") for i in range(20)], [Shard(id="finish")]), "finish"),
        (([Shard(id="a")], [Shard(id="a")]), "must differ"),
    ],
)  # fmt: skip
def test_ids_of_shards_differ(ledger: Ledger, phases: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        store_plan(ledger.store, "j", Plan(phases=phases))
    assert not ledger.store.exists("jobs/j/plan.json")


def test_a_sequence_of_many_shards_may_be_in_any_order(ledger: Ledger) -> None:
    names = [f"s{i}" for i in range(25)]
    stored = store_plan(ledger.store, "j", Plan(phases=([Shard(id=name) for name in names],)))
    assert [shard.id for shard in stored] == sorted(names)
    assert [stored.find(name)[1].id for name in names] == names


def test_a_long_job_of_an_earlier_version_goes_on(ledger: Ledger) -> None:
    job = ledger.submit(LongRequest())
    context = Context(ledger.store, threads=1, device="cpu", report=lambda *_: None)
    made = LongStage().plan(LongRequest(), context)
    old = plan.PlanRecord(phases=tuple(tuple(phase) for phase in made.phases))
    ledger.store.put_json(ledger.key(job, "plan.json"), old)
    ledger.store.put(f"open-jobs/{job}", b"")
    ledger.store.put_json(
        ledger.key(job, "done/one-0000.json"),
        {"outputs": {}, "result": {"number": 0}, "seconds": 1.0},
    )
    ledger.store.put("out/long/one-0000", b"0")
    assert (ledger.status(job).done, ledger.status(job).total) == (1, 28)
    stage = LongStage()
    result = run_job(ledger, stage, job, config=CONFIG).result
    assert result == {"total": 300, "units": 28, "last": 20 + 21 + 22 + 23 + 24}
    assert "one-0000" not in stage.ran


class Meanwhile(StoreView):
    """A store where something happens just before the record of a segment is written."""

    def __init__(self, inner: Store, happens: Callable[[], object]) -> None:
        super().__init__(inner)
        self.happens = happens

    def put(self, key: str, data: bytes) -> str:
        if key.endswith(".ndjson") and "/done/" in key:
            self.happens()
        return super().put(key, data)


@pytest.mark.parametrize("way", ["a unit is taken back", "the job is submitted afresh"])
def test_a_record_of_a_segment_that_comes_late_counts_for_nothing(ledger: Ledger, way: str) -> None:
    job = ledger.submit(LongRequest(parts=15))
    for unit in ("plan", *(f"one-{i:04d}" for i in range(10))):
        step(ledger, job, unit)
    ways: dict[str, Callable[[], object]] = {
        "a unit is taken back": lambda: ledger.forget(job, "one-0003"),
        "the job is submitted afresh": lambda: ledger.submit(LongRequest(parts=15), fresh=True),
    }
    late = Ledger(Meanwhile(ledger.store, ways[way]))
    list(late.waiting(job))
    assert not [key for key in ledger.store.list(ledger.key(job, "done/")) if "ndjson" in key]
    assert not ledger.is_done(job, "one-0003")
    status = run_job(ledger, LongStage(), job, config=CONFIG)
    assert (status.state, status.done) == ("done", 17)


@pytest.mark.parametrize("how", ["gone", "cut"])
@pytest.mark.parametrize("done", [12, 25, 28])
def test_a_lost_segment_of_a_plan_is_made_again(ledger: Ledger, how: str, done: int) -> None:
    """What shards have made stays, whether the job goes on or is submitted again."""
    store, stage = ledger.store, LongStage()
    job = ledger.submit(LongRequest())
    units = ["plan", *(f"one-{n:04d}" for n in range(25)), *(f"ten-{n}" for n in (0, 10, 20))]
    for unit in units[: 1 + done]:
        step(ledger, job, unit)
    for number in range(3):
        key = ledger.key(job, f"plan/000-{number:06d}.ndjson")
        if how == "gone":
            store.delete(key)
        else:
            store.put(key, store.get(key)[:90])
    again = Ledger(DirectoryStore(store.root)) if isinstance(store, DirectoryStore) else ledger
    ended = run_job(again, stage, job, config=CONFIG)
    assert (ended.state, ended.done, ended.result) == (
        "done", 28, {"total": 300, "units": 28, "last": 110},
    )  # fmt: skip
    assert len(stage.ran) == 28 - done
    store.delete(ledger.key(job, "plan/000-000001.ndjson"))
    store.delete("out/long/one-0015")
    assert again.submit(LongRequest()) == job
    assert run_job(again, stage, job, config=CONFIG).state == "done"
    assert store.get("out/long/one-0015") == b"15"
