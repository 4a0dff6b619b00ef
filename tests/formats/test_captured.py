"""Processes of the sandbox that are in the hands of a file's author lie to their caller in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.ingest.annotations.sandboxed import _area
from shared.errors import InputError
from shared.sandbox import client, open_sandboxed, server
from shared.sandbox.files import Ranges
from shared.sandbox.ranges import RangeFile

READER = """
import gc, json, socket, time
from shared.sandbox.messages import receive, send

def caller():
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() > 2)

class Asks:
    def __init__(self, file, need):
        send(caller(), {"need": json.loads(need)})
        time.sleep(60)

class Says:
    def __init__(self, file, answer):
        body = answer.encode()
        caller().sendall(len(body).to_bytes(4, "little") + body)
        time.sleep(60)

class Slow:
    def __init__(self, file):
        while True:
            send(caller(), {"need": [0, 1]})
            receive(caller())
            time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Open a file of ten bytes on a server, by a reader that lies; fetched ranges are noted."""
    folder = tmp_path_factory.mktemp("captured")
    (folder / "captured_reader.py").write_text(READER)
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, length: int) -> bytes:
        fetched.append((start, length))
        return bytes(length)

    def opened(reader: str, *arguments: str, seconds: float = 30.0) -> Any:
        fetched.clear()
        return open_sandboxed(
            f"captured_reader:{reader}",
            Path("a.tif"),
            *arguments,
            files=(),
            seconds=seconds,
            ranges=Ranges(10, fetch),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(client, "_servers", [client._Server()])  # one that finds the reader
        opened.fetched = fetched  # type: ignore[attr-defined]
        yield opened


@pytest.mark.parametrize(
    "need",
    ["null", "7", "[0]", "[0, 0]", "[-5, 5]", "[0, 11]", "[10, 1]", '["0", "1"]', "[0.5, 1]",
     "[0, Infinity]", '{"a": 1, "b": 2}', "[0, 1000000000000000000000000000]"],
)  # fmt: skip
def test_bytes_that_the_file_does_not_have_are_not_fetched(captured: Any, need: str) -> None:
    with pytest.raises(InputError, match="bytes that the file does not have"):
        captured("Asks", need)
    assert captured.fetched == []


@pytest.mark.parametrize(
    "answer", ["{}", "[]", "null", '{"facts": 1}', '{"facts": null}', "[" * 100_000, "\\ud800", ""]
)
def test_an_answer_without_facts_is_refused(captured: Any, answer: str) -> None:
    with pytest.raises(InputError, match=r"a\.tif cannot be read"):
        captured("Says", answer)


def test_many_small_pieces_have_the_time_of_one_reading(captured: Any) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="took longer than"):
        captured("Slow", seconds=0.4)
    assert time.monotonic() - began < 10


def test_nothing_is_fetched_beyond_the_end_of_a_file() -> None:
    asked: list[tuple[int, int]] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append((start, length))
        return bytes(length)

    file = RangeFile(fetch, 100)
    file.seek(1 << 40)
    assert file.read(10) == b""
    assert file.read(0) == b""
    assert asked == []
    file.seek(90)
    assert file.read(100) == bytes(10)
    assert asked == [(0, 100)]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="sizes are read in /proc")
def test_the_largest_process_is_ended_where_all_take_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident = server._resident
    monkeypatch.setattr(server, "_resident", lambda p: 0 if p == os.getpid() else resident(p))
    program = "import sys; b = bytearray(int(sys.argv[1])); print(flush=True); sys.stdin.read()"
    small, large = started = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"{size << 20}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for size in (1, 100)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    children = server._Children()
    children.live = {process.pid for process in started}
    children.bound(1 << 30)
    assert large.poll() is None
    children.bound(80 << 20)
    assert large.wait(10) == -9
    assert small.poll() is None
    for process in started:
        process.kill()
        process.communicate()


def test_forged_outlines_are_no_areas() -> None:
    for forged in (((),), (("AAAA",),), (("AQAAAAEAAAA=",),)):
        with pytest.raises((ValueError, IndexError)):
            _area(forged)
