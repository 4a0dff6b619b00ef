"""Working on jobs without a queue: leases in the store, and processes of `htd work`."""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import subprocess
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from heterotissue import running
from heterotissue.cli import work as command
from heterotissue.cli.app import app
from heterotissue.running import Target, run_request
from shared.errors import HandedBackError
from shared.jobs import Ledger, StoreLeases, leases, run_job, work
from shared.logging import JsonFormatter
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.toy import ToyRequest, ToyStage
from tests.toy_work import QUICK, work_quickly
from tests.unit.test_job_faults import Stopped
from tests.unit.test_jobs import CONFIG


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Makes processes from one without threads, because a lock that a thread holds stays held."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toy_work"])
    return context


def test_ten_processes_on_a_shared_folder_make_the_same_bytes(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    ledger = Ledger(DirectoryStore(tmp_path / "shared"))
    request = ToyRequest(parts=40, seconds=0.02, faults={"square-3": "once", "square-5": "kill"})
    job = ledger.submit(request)
    barrier = processes.Barrier(10)
    started = [
        processes.Process(target=work_quickly, args=(tmp_path / "shared", barrier))
        for _ in range(10)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in started) == [-9, *[0] * 9]
    assert ledger.status(job).state == "done"
    alone = Ledger(DirectoryStore(tmp_path / "alone"))
    calm = ToyRequest(parts=40)
    run_job(alone, ToyStage(), alone.submit(calm), config=CONFIG)
    for key in alone.store.list("toy/"):
        assert ledger.store.get(key) == alone.store.get(key)
    starts = [
        ledger.store.get_json(key)["starts"]
        for key in ledger.store.list(ledger.key(job, "attempts/"))
    ]
    least = 44 + 2  # two are started again: one failed, one was killed
    assert least <= sum(starts) <= least + 10, "leases keep the processes apart"


def test_a_lease_in_the_store_is_exclusive_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now))
    store = DirectoryStore(tmp_path)
    one, other = StoreLeases(store, 60), StoreLeases(store, 60)
    with one.hold("job/a") as mine:
        assert mine
        for now in (0.0, 59.0):  # noqa: B007 - the leases read it
            with other.hold("job/a") as theirs:
                assert not theirs
        with other.hold("job/a.b") as theirs:
            assert theirs, "another unit"
        store.put("jobs/job/leases/a/0", b"a beat")
        for now in (60.5, 120.0):  # noqa: B007
            assert other.alive("job/a"), "it has changed since"
        now = 121.0
        with other.hold("job/a") as theirs:
            assert theirs, "it has not changed for a minute"
            assert store.exists("jobs/job/leases/a/1")
            assert one.alive("job/a")
    assert not list(store.list())


def test_a_lease_in_the_store_is_renewed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with StoreLeases(store, 0.03).hold("job/a"):
        first, deadline = store.get("jobs/job/leases/a/0"), time.monotonic() + 10
        while store.get("jobs/job/leases/a/0") == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_that_is_told_to_end_gives_its_unit_back(tmp_path: Path) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    job = ledger.submit(ToyRequest(parts=1))
    with pytest.raises(HandedBackError):
        work(ledger, Stopped(), QUICK)
    assert ledger.store.get_json(ledger.key(job, "attempts/square-0.json"))["starts"] == 0
    assert not list(ledger.store.list(ledger.key(job, "leases/")))


def test_the_command_works_on_a_stage_a_job_or_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_stage", lambda name: ToyStage())
    monkeypatch.setattr(command, "configure_logging", lambda *_: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    ledger = Ledger(DirectoryStore(tmp_path))
    first, second = (ledger.submit(ToyRequest(name=name, parts=1)) for name in "ab")
    place = ["work", "--stage", "toy", "--store", str(tmp_path)]

    def call(*more: str) -> str:
        result = CliRunner().invoke(app, [*place, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stderr

    assert "1 units run" in call("--job", first, "--unit", "plan")
    assert ledger.runnable(first) == (0, ["square-0"])
    call("--job", first, "--until-idle")
    assert (ledger.status(first).state, ledger.status(second).state) == ("done", "planning")
    call("--until-idle")
    assert ledger.status(second).state == "done"
    assert "0 units run" in call("--until-idle")
    for wrong in (["--unit", "plan"], ["--job", "toy-0123456789abcdef"]):
        assert CliRunner().invoke(app, [*place, *wrong]).exception is not None


def test_a_command_may_leave_its_job_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: ForkServerContext
) -> None:
    monkeypatch.setattr(running, "WATCH_SECONDS", 0.05)
    store = DirectoryStore(tmp_path)
    config = Settings(broker_url=type(CONFIG.broker_url)("store"), threads=1, device="cpu")
    job = Ledger(store).submit(ToyRequest(parts=1))
    worker = processes.Process(target=work_quickly, args=(tmp_path,))
    worker.start()
    status = run_request(Target(store, config), ToyRequest(parts=1))
    worker.join()
    assert (status.job, status.state) == (job, "done")


def test_a_failure_is_logged_with_what_it_belongs_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(DirectoryStore(tmp_path), owner="acme")
    job = ledger.submit(ToyRequest(parts=2, faults={"square-0": "input", "square-1": "always"}))
    with caplog.at_level(logging.WARNING):
        run_job(ledger, ToyStage(), job, config=CONFIG)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    kinds = [(line["unit"], line["level"], line["start"]) for line in lines]
    assert kinds == [
        ("square-0", "ERROR", 1), ("square-1", "WARNING", 1),
        ("square-1", "WARNING", 2), ("square-1", "ERROR", 3),
    ]  # fmt: skip
    assert {(line["job"], line["tenant"]) for line in lines} == {(job, "acme")}
    assert "RuntimeError: broken" in lines[-1]["traceback"]
    assert "traceback" not in lines[0], "wrong input is no fault of the program"


def test_the_array_job_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_stage", lambda name: ToyStage())
    monkeypatch.setattr(command, "configure_logging", lambda *_: None)
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    (script,) = re.findall(r"^```sh\n(#!/bin/bash\n#SBATCH.*?)^```$", page, re.S | re.M)
    assert "#SBATCH --array=1-10\n" in script
    # bash runs it, with a command in the place of htd that shows its arguments and its settings.
    shown = 'htd() { echo "$@"; env | grep ^HTD_ >&2; }; exec() { "$@"; };'
    done = subprocess.run(
        ["bash", "-euc", f"{shown}\n{script}"], capture_output=True, text=True, check=True
    )
    settings = dict(line.split("=", 1) for line in done.stderr.split())
    assert Settings(**{name[4:].lower(): value for name, value in settings.items()}).threads == 2
    result = CliRunner().invoke(app, [*done.stdout.split(), "--store", str(tmp_path)])
    assert result.exit_code == 0
    assert "embed: 0 units run" in result.stderr
