"""Outputs of units and records of jobs that are damaged between phases: they are made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from shared.contracts.base import Name, Request
from shared.errors import InputError
from shared.jobs import Context, Ledger, NoLeases, Plan, Reporter, Shard, Stage, execute, run_job
from shared.jobs.made import DamagedOutputError, Made
from shared.jobs.records import UnreadableRecordError, read_record, write_record
from shared.storage import DirectoryStore, Store
from tests.unit.test_jobs import CONFIG

READS: dict[str, Callable[[Store, str], bytes]] = {
    "get": lambda store, key: store.get(key),
    "local": lambda store, key: store.local(key).read_bytes(),
    "open": lambda store, key: _stream(store, key),
    "read_range": lambda store, key: store.read_range(key, 0, 99),
}


def _stream(store: Store, key: str) -> bytes:
    with store.open(key) as stream:
        return stream.read()


class ChainRequest(Request):
    """Make objects, each of earlier ones, read in the given way."""

    stage: ClassVar[str] = "chain"
    scratch: ClassVar[tuple[str, ...]] = ("scratch/",)

    name: Name = "n"
    way: str = "get"
    source: str | None = None

    def inputs(self) -> list[str]:
        return [self.source] if self.source else []

    def products(self) -> list[str]:
        return [f"out/{self.name}"]


class ChainStage(Stage[ChainRequest]):
    """Writes `chosen` (plan), `first-0` and `first-1`, `second`, `third`."""

    name: ClassVar[str] = "chain"
    request = ChainRequest

    def plan(self, request: ChainRequest, context: Context) -> Plan:
        context.store.put("out/n/chosen", b"chosen")
        context.store.put("scratch/n/facts", b"facts")
        first = tuple(Shard(id=f"first-{n}", args={"number": n}) for n in range(2))
        return Plan(phases=(first, (Shard(id="second"),), (Shard(id="third", after=("second",)),)))

    def run(self, request: ChainRequest, shard: Shard, context: Context) -> dict[str, Any]:
        def read(key: str) -> bytes:
            return READS[request.way](context.store, key)

        made = read("out/n/chosen") + read("scratch/n/facts")
        made += read(request.source) if request.source else b""
        if shard.id == "second":
            made += read("out/n/first-0")
        if shard.id == "third":  # reads what lies two phases back, and which it does not state
            made += read("out/n/first-1") + read("out/n/second")
        context.store.put(f"out/n/{shard.id}", made)
        return {"bytes": len(made)}

    def finish(
        self, request: ChainRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        total = sum(part["bytes"] for part in done.values())
        context.store.put("out/n/record", str(total).encode())
        context.store.delete_prefix("scratch/n/")
        return {"bytes": total, "units": len(done)}


UNITS = ["plan", "first-0", "first-1", "second", "third"]
DAMAGES: dict[str, Callable[[Store, str], None]] = {
    "changed": lambda store, key: store.put(key, b"other") and None,
    "gone": lambda store, key: store.delete(key),
}


def work(ledger: Ledger, job: str, units: list[str]) -> None:
    for unit in units:
        execute(
            ledger, ChainStage(), job, unit, leases=NoLeases(), reporter=Reporter(), config=CONFIG
        )


def outcome(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in (*store.list("out/"), *store.list("scratch/"))}


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("key", "after"),
    [
        ("out/n/chosen", "plan"),
        ("out/n/chosen", "second"),
        ("scratch/n/facts", "first-0"),
        ("out/n/first-0", "first-1"),
        ("out/n/first-1", "second"),
        ("out/n/second", "second"),
        ("out/n/first-0", "third"),
        ("out/n/third", "third"),
    ],
)
def test_a_job_ends_as_if_nothing_had_been_damaged(
    ledger: Ledger, key: str, after: str, damage: str, way: str
) -> None:
    undisturbed = ChainRequest(way=way)
    assert run_job(ledger, ChainStage(), ledger.submit(undisturbed), config=CONFIG).state == "done"
    expected = outcome(ledger.store)
    job = ledger.submit(undisturbed, fresh=True)
    work(ledger, job, UNITS[: UNITS.index(after) + 1])
    DAMAGES[damage](ledger.store, key)
    status = run_job(ledger, ChainStage(), job, config=CONFIG)
    assert (status.state, status.failed) == ("done", {})
    assert status.result is not None
    assert status.result["units"] == 4
    assert outcome(ledger.store) == expected


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("after", UNITS[:-1])
def test_a_record_that_changes_while_a_job_runs_does_not_make_it_of_two_kinds(
    ledger: Ledger, after: str, way: str
) -> None:
    store = ledger.store
    store.put("in/a", b"one")
    request = ChainRequest(source="in/a", way=way)
    job = ledger.submit(request)
    work(ledger, job, UNITS[: UNITS.index(after) + 1])
    store.put("in/a", b"two")
    status = run_job(ledger, ChainStage(), job, config=CONFIG)
    assert status.state != "done"
    assert "in/a has changed since this job was submitted" in " ".join(status.failed.values())
    again = ledger.submit(request)
    assert again != job
    assert run_job(ledger, ChainStage(), again, config=CONFIG).state == "done"
    assert all(b"two" in store.get(f"out/n/{unit}") for unit in UNITS[1:])


@pytest.mark.parametrize(
    "swap",
    [("done/first-0.json", "done/first-1.json"), ("done/first-1.json", "done/second.json")],
)
def test_the_marker_of_one_unit_does_not_stand_for_another(
    ledger: Ledger, swap: tuple[str, str]
) -> None:
    job = ledger.submit(ChainRequest())
    work(ledger, job, UNITS)
    source, place = (ledger.key(job, name) for name in swap)
    ledger.store.put(place, ledger.store.get(source))
    status = run_job(ledger, ChainStage(), job, config=CONFIG)
    assert status.state == "done"
    assert status.result == {"bytes": 88, "units": 4}


def test_a_plan_that_was_cut_is_not_followed(ledger: Ledger) -> None:
    job = ledger.submit(ChainRequest())
    work(ledger, job, UNITS[:3])
    plan = ledger.store.get_json(ledger.key(job, "plan.json"))
    plan["phases"][0].pop()
    ledger.store.put_json(ledger.key(job, "plan.json"), plan)
    with pytest.raises(UnreadableRecordError, match=r"plan\.json cannot be read"):
        ledger.plan(job)


def test_a_record_is_of_its_key_and_its_content_alone(tmp_path: Any) -> None:
    store = DirectoryStore(tmp_path)
    record = ChainRequest(way="local")
    write_record(store, "jobs/a/request.json", record)
    assert read_record(store, "jobs/a/request.json", ChainRequest) == record
    store.put("jobs/b/request.json", store.get("jobs/a/request.json"))
    with pytest.raises(UnreadableRecordError, match="the record of something else"):
        read_record(store, "jobs/b/request.json", ChainRequest)
    changed = store.get("jobs/a/request.json").replace(b"local", b"get")
    store.put("jobs/a/request.json", changed)
    with pytest.raises(InputError, match="it was changed"):
        read_record(store, "jobs/a/request.json", ChainRequest)
    store.put_json("jobs/old/request.json", record)  # as an earlier version wrote it
    assert read_record(store, "jobs/old/request.json", ChainRequest) == record


def test_threads_of_a_unit_may_read_at_the_same_time() -> None:
    asked = []

    def further() -> Iterator[tuple[str, dict[str, str]]]:
        for number in range(200):
            asked.append(number)
            yield f"unit-{number}", {f"out/{number}": str(number)}

    made = Made((), ("out/",), further())

    def check(number: int) -> str | None:
        try:
            made.check(f"out/{number % 200}", lambda: str(number))
        except DamagedOutputError as error:
            return error.units[0]
        return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(check, range(400)))
    assert found == [None] * 200 + [f"unit-{number}" for number in range(200)]
    assert asked == list(range(200))
