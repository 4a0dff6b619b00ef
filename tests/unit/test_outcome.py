"""What a person sees of a job: its end, its progress, its place in the list, and Ctrl-C."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from heterotissue.evaluation_cost import describe
from heterotissue.job_list import Runner, job_table, sign, stored_jobs
from heterotissue.job_report import (
    cause_lines,
    causes,
    figures,
    notes,
    report,
    slide_rows,
    write_table,
)
from heterotissue.progress import LineReporter, duration, print_table, working
from heterotissue.stack.supervisor import STATE, Stack
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.jobs import JobRecord, JobResult, Marker, ParkedUnit
from shared.errors import InputError
from shared.jobs import Ledger, Plan, Shard, store_plan
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.region_sets import CLASSES
from tests.toy import ToyRequest

INTERRUPTED_IMPORT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "heterotissue.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from heterotissue.cli import main
main()
"""


def put_job(store: DirectoryStore, job: str = "ingest-1") -> None:
    """Write a job of two good slides and two bad ones, as the ledger would."""
    names = ("a", "b", "c", "d")
    plan = Plan(phases=(tuple(Shard(id=name) for name in names),))
    store.put_json(
        f"jobs/{job}/request.json", JobRecord(stage="ingest", request={"cohort": "lung"})
    )
    store_plan(store, job, plan)
    for name in ("plan", "a", "c"):
        result = (
            {}
            if name == "plan"
            else {"patches": 7, "sha256": "e" * 64, "types": "f" * 64, "region_sha256": None}
        )
        store.put_json(
            f"jobs/{job}/done/{name}.json", Marker(outputs={}, result=result, seconds=1.5)
        )
    failed = {name: f"{name}.svs is 10×{width} px: leave it out" for name, width in
              (("b", 20), ("d", 30))}  # fmt: skip
    for name, error in failed.items():
        store.put_json(f"jobs/{job}/failed/{name}.json", ParkedUnit(error=error))
    store.put_json(
        f"jobs/{job}/result.json", JobResult(state="partial", result={"slides": 2}, failed=failed)
    )


def test_one_cause_is_said_once_with_a_count_and_names() -> None:
    failed = {
        f"TCGA-{number}": f"tile TCGA-{number}_x{number}.webp is {number}×224 px: take smaller ones"
        for number in range(248)
    }
    failed["other"] = "it shows no tissue"
    grouped = causes(failed)
    assert [(error, len(names)) for error, names in grouped] == [
        ("tile TCGA-0_x0.webp, … is 0–247×224 px: take smaller ones", 248),
        ("it shows no tissue", 1),
    ]
    lines = list(cause_lines(failed))
    assert len(lines) == 3
    assert "248 ×" in lines[0]
    assert (
        lines[1].strip()
        == "TCGA-0, TCGA-1, TCGA-2, TCGA-3, TCGA-4, TCGA-5, TCGA-6, TCGA-7 and 240 more"
    )
    assert lines[2].strip() == "other: it shows no tissue"


def test_causes_that_differ_stay_apart() -> None:
    failed = {"a": "a is damaged", "b": "b shows no tissue", "regions-c": "c is damaged"}
    assert [names for _, names in causes(failed)] == [["a", "regions-c"], ["b"]]


def test_values_to_be_given_as_they_are_stay_apart() -> None:
    failed = {
        name: f"mask {name}.png has labels [{value}]: name them, such as '{value}=tumor'"
        for name, value in (("a", 7), ("b", 255), ("c", 255))
    }
    assert [(error, len(names)) for error, names in causes(failed)] == [
        ("mask a.png has labels [7]: name them, such as '7=tumor'", 1),
        ("mask b.png, … has labels [255]: name them, such as '255=tumor'", 2),
    ]


def test_the_figures_of_one_cause_are_given_as_a_span() -> None:
    failed = {
        f"s{number}": f"s{number}.svs: {share} of 1,{number}00 px lie on tissue, see notes.csv"
        for number, share in ((1, "3.5%"), (2, "9.25%"), (3, "10%"))
    }
    (cause, names), = causes(failed)  # fmt: skip
    assert cause == "s1.svs, …: 3.5–10% of 1,100–1,300 px lie on tissue, see notes.csv"
    assert names == ["s1", "s2", "s3"]


def test_figures_are_short_and_without_empty_values() -> None:
    result = {
        "images": 10000,
        "share": 0.4381514,
        "none": None,
        "wanted": {},
        "of": {"a": 0.123456},
    }
    assert figures(result) == "images 10,000, share 0.4382"
    assert list(notes(result)) == ["of: a 0.1235"]
    assert list(notes({"unlabelled": [f"s{n}" for n in range(100)]})) == [
        "unlabelled: s0, s1, s2, s3, s4, s5, s6, s7 and 92 more"
    ]


def test_the_table_of_slides_is_a_file_beside_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path)
    put_job(store)
    write_table(store, "ingest-1")
    path = tmp_path / "jobs/ingest-1/report.csv"
    rows = list(csv.DictReader(path.open()))
    assert [(row["slide"], row["state"], row["patches"]) for row in rows] == [
        ("a", "done", "7"), ("b", "skipped", ""), ("c", "done", "7"), ("d", "skipped", ""),
    ]  # fmt: skip
    assert rows[1]["why"] == "b.svs is 10×20 px: leave it out"
    assert set(rows[0]) == {"slide", "state", "why", "seconds", "patches"}
    report(Ledger(store).status("ingest-1"), store)
    shown = capsys.readouterr().err
    assert "2 ×  b.svs, … is 10×20–30 px" in shown
    assert f"result: {tmp_path}/cohorts/lung.json" in shown
    assert f"slides: {path}" in shown


def test_a_job_without_slides_has_no_table(tmp_path: Path) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    job = ledger.submit(ToyRequest())
    assert slide_rows(ledger.store, job) == []
    write_table(ledger.store, job)
    assert not ledger.store.exists(f"jobs/{job}/report.csv")


def test_a_line_says_phase_unit_rate_and_time_left() -> None:
    now = [0.0]
    lines = LineReporter("embed", clock=lambda: now[0])
    assert lines.line() == "embed: planning"
    lines.phase("j", 0, 2, 4, 10)  # four were done before this run
    now[0] = 60.0
    lines.phase("j", 0, 2, 6, 10)
    lines.unit("j", "slide-7", 50, 100, "patches")
    # 2.5 units in 60 s, 3.5 left
    assert lines.line() == (
        "embed: phase 1/2, 6/10 done, slide-7 50/100 patches, 24 s each, "
        "about 84 s left in this phase"
    )
    lines.phase("j", 1, 2, 0, 3)
    assert lines.line() == "embed: phase 2/2, 0/3 done"
    lines.phase("j", 2, 2, 0, 1)
    assert lines.line() == "embed: finishing"


def test_off_a_terminal_a_table_has_its_rows_whole() -> None:
    wide, out = "a" * 300, io.StringIO()
    table = Table("name", "about", box=None)
    table.add_row(wide, "b c")
    print_table(table, Console(file=out))
    assert wide + " " in out.getvalue()
    assert "b c" in out.getvalue().splitlines()[1]


def test_work_of_unknown_length_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = threading.Event()
    monkeypatch.setattr("heterotissue.progress.LINE_SECONDS", 0.001)
    monkeypatch.setattr("heterotissue.progress.say", lambda text: (print(text), said.set()))
    with working("reading"):
        assert said.wait(5)
    assert capsys.readouterr().out.startswith("reading: for 0 s now")


def test_durations_have_one_unit() -> None:
    assert [duration(seconds) for seconds in (4, 99, 100, 5400, 7200)] == [
        "4 s", "99 s", "2 min", "90 min", "2.0 h",
    ]  # fmt: skip


def test_the_list_of_jobs_has_names_times_and_true_states(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    put_job(store)
    ledger = Ledger(store)
    running = ledger.submit(ToyRequest(name="running"))
    sign(store, running)
    gone = ledger.submit(ToyRequest(name="gone"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = Runner.here()
    store.put_json(f"jobs/{gone}/runner.json", here.model_copy(update={"pid": ended.pid}))
    reused = ledger.submit(ToyRequest(name="reused"))  # its number belongs to another process now
    store.put_json(
        f"jobs/{reused}/runner.json", here.model_copy(update={"started": here.started - 99})
    )
    away = ledger.submit(ToyRequest(name="away"))
    store.put_json(f"jobs/{away}/runner.json", here.model_copy(update={"host": "another"}))
    queued = ledger.submit(ToyRequest(name="queued"))
    old = ledger.submit(ToyRequest(name="old"))
    for file in (tmp_path / "jobs" / old).rglob("*.json"):
        os.utime(file, (0, 0))
    lines = {line.status.job: line for line in stored_jobs(store)}
    assert {job: line.state for job, line in lines.items()} == {
        "ingest-1": "partial", running: "planning", gone: "interrupted", reused: "interrupted",
        away: "planning", queued: "planning", old: "interrupted",
    }  # fmt: skip
    assert next(iter(lines)) == old  # the oldest comes first
    assert lines["ingest-1"].name == "lung"
    first = lines["ingest-1"]
    assert first.submitted is not None
    assert first.ended is not None
    assert first.submitted <= first.ended
    assert job_table(lines.values()).row_count == 7


def test_ctrl_c_while_modules_are_imported_ends_with_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, "jobs", "list"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.split("\n") == [
        "",
        "interrupted; run the same command again to continue",
        "",
    ]


def test_an_evaluation_says_how_long_its_segmenters_take() -> None:
    request = EvaluateRequest(report="r", dataset="d", segmenter_batch=2, seeds=2)
    config = Settings(threads=1, device="cpu")
    line = describe(request, 32, CLASSES, 10, config, done=1) or ""
    assert line.startswith("estimate: 5 segmenters × 300 steps × ")
    assert "about" in line
    assert describe(request, 32, CLASSES, 10, config, done=6) is None


def test_a_folder_has_one_stack(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"up in .* already \(process 4711\)"):
            Stack(tmp_path, [], print).start()
    (tmp_path / STATE).write_text(f'{{"redis": {os.getpid()}}}')
    with pytest.raises(InputError, match=rf"left redis running .* kill {os.getpid()}"):
        Stack(tmp_path, [], print).start()


def test_the_state_of_a_stack_is_replaced_whole(tmp_path: Path) -> None:
    stack = Stack(tmp_path, [], print)
    stack._write_state()
    with (tmp_path / STATE).open() as seen:
        stack._write_state()
        assert seen.read() == "{}"  # a reader keeps the file that it has opened
        assert os.fstat(seen.fileno()).st_ino != (tmp_path / STATE).stat().st_ino
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_only_its_user_reads_the_key_of_a_stack(tmp_path: Path) -> None:
    stack = Stack(tmp_path, [], print)
    stack.environment = {"HTD_STORE": str(tmp_path)}
    key = stack.gateway_config.gateway_key.get_secret_value()
    assert stack.gateway_config.gateway_key.get_secret_value() == key
    assert len(key) == 64
    assert (tmp_path / "gateway.key").stat().st_mode & 0o777 == 0o600
    assert not stack.config.gateway_key.get_secret_value()
    assert not any(key in value for value in stack.environment.values())
