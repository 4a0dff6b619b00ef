"""Names belong to jobs, and a job keeps what an earlier one has made from the same content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from shared.contracts.base import Request
from shared.errors import InputError
from shared.jobs import (
    Context,
    Ledger,
    NameTakenError,
    NoLeases,
    Plan,
    Reporter,
    Shard,
    Stage,
    execute,
    run_job,
)
from shared.jobs.names import making, owner
from shared.settings import Settings
from shared.storage import DirectoryStore, sha256
from tests.toy import ToyRequest, ToyStage

CONFIG = Settings(threads=1, device="cpu")


class CopyRequest(Request):
    """Copy the objects in/<part> to out/<name>/<part>; `sum` reads them all."""

    stage: ClassVar[str] = "copy"
    scratch: ClassVar[tuple[str, ...]] = ("scratch/",)
    name: str = "a"
    parts: tuple[str, ...] = ("x", "y")
    suffix: str = ""

    def files(self) -> list[str]:
        return [f"in/{part}" for part in self.parts]

    def products(self) -> list[str]:
        return [f"out/{self.name}"]

    def revises(self, earlier: Request) -> bool:
        return isinstance(earlier, CopyRequest) and set(earlier.parts) <= set(self.parts)


class CopyStage(Stage[CopyRequest]):
    name: ClassVar[str] = "copy"
    request = CopyRequest

    def __init__(self) -> None:
        self.ran: list[str] = []

    def plan(self, request: CopyRequest, context: Context) -> Plan:
        if request.suffix in {".a", ".b"}:
            raise InputError("copies have no suffix")
        content = {part: sha256(context.store.get(f"in/{part}")) for part in request.parts}
        head = Shard(id="head", reads={request.parts[0]: content[request.parts[0]]}, grows=True)
        return Plan(
            phases=(
                (head,),
                tuple(
                    Shard(id=part, reads={part: content[part]}, after=("head",))
                    for part in request.parts
                ),
            )
        )

    def run(self, request: CopyRequest, shard: Shard, context: Context) -> dict[str, Any]:
        self.ran.append(shard.id)
        if request.suffix:
            raise InputError("copies have no suffix")
        if shard.id == "head":
            context.store.put(f"scratch/{request.name}", b"")
        else:
            data = context.store.get(f"in/{shard.id}")
            context.store.put(f"out/{request.name}/{shard.id}", data)
        return {}

    def finish(
        self, request: CopyRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        context.store.put_json(f"out/{request.name}/all.json", sorted(request.parts))
        return {"parts": len(done) - 1}


@pytest.fixture
def ledger(tmp_path: Any) -> Ledger:
    store = DirectoryStore(tmp_path)
    for part in "xyz":
        store.put(f"in/{part}", part.encode())
    return Ledger(store)


def copy(ledger: Ledger, *, replace: bool = False, **fields: Any) -> list[str]:
    """Run a request to its end, and return the units that ran."""
    stage = CopyStage()
    job = ledger.submit(CopyRequest(**fields), replace=replace)
    status = run_job(ledger, stage, job, config=CONFIG)
    assert status.state == "done", status.failed
    return stage.ran


def made(ledger: Ledger, name: str = "a") -> dict[str, bytes]:
    prefix = f"out/{name}/"
    return {key.removeprefix(prefix): ledger.store.get(key) for key in ledger.store.list(prefix)}


def test_changed_content_is_another_job_that_makes_only_what_has_changed(ledger: Ledger) -> None:
    assert copy(ledger) == ["head", "x", "y"]
    assert copy(ledger) == []
    ledger.store.put("in/y", b"changed")
    assert copy(ledger) == ["y"]
    assert made(ledger)["y"] == b"changed"


def test_what_comes_after_a_changed_shard_is_made_again(ledger: Ledger) -> None:
    copy(ledger)
    ledger.store.put("in/x", b"changed")
    assert copy(ledger) == ["head", "x", "y"]


def test_back_to_the_first_content_is_not_believed_to_be_done(ledger: Ledger) -> None:
    copy(ledger)
    ledger.store.put("in/y", b"changed")
    copy(ledger)
    ledger.store.put("in/y", b"y")
    assert copy(ledger) == ["y"]
    assert made(ledger)["y"] == b"y"


def test_a_request_that_grows_keeps_what_is_there(ledger: Ledger) -> None:
    copy(ledger)
    assert copy(ledger, parts=("x", "y", "z")) == ["z"]
    assert set(made(ledger)) == {"x", "y", "z", "all.json"}


def test_a_job_that_never_ran_does_not_hide_the_one_before_it(ledger: Ledger) -> None:
    copy(ledger)
    ledger.submit(CopyRequest(parts=("x", "y", "z")))  # stays open, and is superseded
    ledger.store.put("in/z", b"changed")
    assert copy(ledger, parts=("x", "y", "z")) == ["z"]


def test_a_half_made_change_is_not_kept(ledger: Ledger) -> None:
    """A unit that a superseded job has started may have left other bytes."""
    copy(ledger)
    ledger.store.put("in/y", b"changed")
    job = ledger.submit(CopyRequest())
    ledger.store.put(f"jobs/{job}/attempts/y.json", b'{"starts": 1, "errors": []}')
    ledger.store.put("out/a/y", b"changed")
    ledger.store.put("in/y", b"y")
    assert "y" in copy(ledger)
    assert made(ledger)["y"] == b"y"


@pytest.mark.parametrize("lost", ["out/a/y", "out/a/all.json"])
def test_lost_outputs_are_made_again(ledger: Ledger, lost: str) -> None:
    copy(ledger)
    ledger.store.delete(lost)
    assert copy(ledger) == (["y"] if lost == "out/a/y" else [])
    assert set(made(ledger)) == {"x", "y", "all.json"}


def test_a_changed_record_is_written_again(ledger: Ledger) -> None:
    copy(ledger)
    ledger.store.put("out/a/all.json", b"[]")
    copy(ledger)
    assert ledger.store.get_json("out/a/all.json") == ["x", "y"]


def test_scratch_is_made_again_only_if_something_else_is_missing(ledger: Ledger) -> None:
    copy(ledger)
    ledger.store.delete("scratch/a")
    assert copy(ledger) == []
    ledger.store.delete("out/a/y")
    assert copy(ledger) == ["head", "y"]


def test_a_name_is_not_taken_from_another_request(ledger: Ledger) -> None:
    copy(ledger)
    with pytest.raises(NameTakenError, match=r"out/a was made by job copy-.*--replace") as refused:
        copy(ledger, parts=("x",))
    assert "from another request (parts had 2 entries and has 1)" in str(refused.value)
    assert set(made(ledger)) == {"x", "y", "all.json"}
    copy(ledger, parts=("x",), replace=True)
    assert ledger.store.get_json("out/a/all.json") == ["x"]
    with pytest.raises(NameTakenError, match=r"\(parts 1 was x and is y\)"):
        copy(ledger, parts=("y",))


class PairRequest(CopyRequest):
    """A request whose result has the names of two others."""

    def products(self) -> list[str]:
        return ["out/a", "out/b"]


def test_names_of_several_jobs_are_taken_from_all_of_them(ledger: Ledger) -> None:
    others = [ledger.submit(CopyRequest(name=name)) for name in ("a", "b")]
    run_job(ledger, CopyStage(), others[0], config=CONFIG)
    job = ledger.submit(PairRequest(name="pair"), replace=True)
    assert [ledger.status(other).state for other in others] == ["done", "cancelled"]
    assert [owner(ledger.store, f"out/{name}") for name in "ab"] == [job, job]


def test_the_job_that_makes_a_name_is_found_without_its_record(ledger: Ledger) -> None:
    """Else it would go on beside the one that replaces it, and write over what that has made."""
    first = ledger.submit(CopyRequest(parts=("x", "y")))
    execute(
        ledger, CopyStage(), first, "plan", leases=NoLeases(), reporter=Reporter(), config=CONFIG
    )
    ledger.store.put("out/a/x", b"x")
    for lost in (lambda: ledger.store.delete("names/out/a.json"),
                 lambda: ledger.store.put("names/out/a.json", b"")):  # fmt: skip
        lost()
        assert making(ledger.store, "out/a") == first
        assert ledger.tidy(first)
        assert owner(ledger.store, "out/a") == first
    ledger.store.delete("names/out/a.json")
    other = ledger.submit(CopyRequest(parts=("z",)), replace=True)
    assert ledger.status(first).state == "cancelled"
    assert owner(ledger.store, "out/a") == other
    assert making(ledger.store, "out/b") is None


def test_what_no_job_is_known_to_have_made_is_not_replaced(ledger: Ledger) -> None:
    ledger.store.put("out/a/x", b"by hand")
    with pytest.raises(NameTakenError, match="no job is known to have made it"):
        copy(ledger)
    copy(ledger, replace=True)
    assert made(ledger)["x"] == b"x"


def test_of_two_requests_at_once_one_says_so(ledger: Ledger) -> None:
    first = ledger.submit(CopyRequest())
    with pytest.raises(NameTakenError, match="out/a is being made by job copy-"):
        ledger.submit(CopyRequest(parts=("z",)))
    assert ledger.is_open(first)


def test_a_job_that_lost_its_name_ends_with_the_reason(ledger: Ledger) -> None:
    """Stores without conditional writes can let two jobs believe that they have the name."""
    job = ledger.submit(CopyRequest())
    ledger.store.put_json("names/out/a.json", {"job": "copy-other"})
    status = run_job(ledger, CopyStage(), job, config=CONFIG)
    assert status.state == "failed"
    assert "another request has taken out/a" in " ".join(status.failed.values())
    assert not list(ledger.store.list("out/"))


def test_a_failed_change_does_not_free_the_name_of_the_result_before_it(ledger: Ledger) -> None:
    copy(ledger)
    ledger.store.put("in/y", b"changed")
    ledger.cancel(ledger.submit(CopyRequest()))
    with pytest.raises(NameTakenError):
        copy(ledger, parts=("z",))
    assert copy(ledger) == ["y"], "the change itself may be tried again"


def test_a_replacement_that_makes_nothing_changes_nothing(ledger: Ledger) -> None:
    copy(ledger)
    before = made(ledger)
    for suffix in (".a", ".b", ".planned"):
        job = ledger.submit(CopyRequest(suffix=suffix, parts=("z",)), replace=True)
        assert run_job(ledger, CopyStage(), job, config=CONFIG).state == "failed"
    with pytest.raises(NameTakenError):
        copy(ledger, parts=("z",))
    assert copy(ledger) == []
    assert made(ledger) == before


@pytest.mark.parametrize("found", [None, b"", b"{"])
def test_a_lost_claim_is_taken_again_by_the_job_of_the_result(
    ledger: Ledger, found: bytes | None
) -> None:
    copy(ledger)
    ledger.store.delete("names/out/a.json")
    if found is not None:
        ledger.store.put("names/out/a.json", found)
    with pytest.raises(NameTakenError):
        copy(ledger, parts=("x",))
    assert copy(ledger) == []
    ledger.store.delete("names/out/a.json")
    ledger.store.put("out/a/all.json", b"by hand")
    with pytest.raises(NameTakenError, match="no job is known to have made it"):
        copy(ledger)


def test_outputs_of_another_version_of_the_program_are_made_again(ledger: Ledger) -> None:
    copy(ledger)
    job = ledger.store.get_json("names/out/a.json")["job"]
    record = ledger.store.get_json(f"jobs/{job}/request.json") | {"version": "0.0.1"}
    record.pop("seal")
    ledger.store.put_json(f"jobs/{job}/request.json", record)
    ledger.store.put("in/y", b"changed")
    assert copy(ledger) == ["head", "x", "y"]


def test_a_failed_job_does_not_hold_its_name(ledger: Ledger) -> None:
    job = ledger.submit(CopyRequest())
    ledger.cancel(job)
    assert copy(ledger, parts=("z",)) == ["head", "z"]


def test_a_name_stays_free_after_several_failed_tries(ledger: Ledger) -> None:
    for parts in (("x",), ("y",)):
        ledger.cancel(ledger.submit(CopyRequest(parts=parts)))
    assert copy(ledger, parts=("z",)) == ["head", "z"]


class TwofoldRequest(CopyRequest):
    """A request whose result has a second name."""

    def products(self) -> list[str]:
        return [*super().products(), f"more/{self.name}"]


def test_a_replaced_result_leaves_nothing_under_its_other_names(ledger: Ledger) -> None:
    stage = CopyStage()
    stage.request = TwofoldRequest
    run_job(ledger, stage, ledger.submit(TwofoldRequest()), config=CONFIG)
    ledger.store.put("more/a/half", b"old")
    copy(ledger, parts=("x",), replace=True)
    assert not list(ledger.store.list("more/"))
    assert not ledger.store.exists("names/more/a.json")


def test_a_request_without_products_takes_no_name(ledger: Ledger) -> None:
    run_job(ledger, ToyStage(), ledger.submit(ToyRequest(parts=1)), config=CONFIG)
    assert not list(ledger.store.list("names/"))
