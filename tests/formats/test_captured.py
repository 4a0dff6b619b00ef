"""Processes of the sandbox that are in the hands of a file's author lie to their caller in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from services.ingest.annotations.sandboxed import _area
from shared.errors import InputError
from shared.features import FeaturesFacts, FeaturesFile, read_features
from shared.imaging import sandboxed_mask
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

class States:
    def __init__(self, file):
        self.facts = {"width": 1 << 31, "height": 1 << 31, "orientation": 1, "palette": [],
                      "bands": 4, "dtype": "<f8"}

    def read(self, top, bottom):
        return b""

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


def test_a_mask_that_states_endless_rows_takes_no_memory(
    captured: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandboxed_mask, "READER", "captured_reader:States")
    Image.new("L", (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"mask m\.png states what no mask does"):
        sandboxed_mask.open_mask(tmp_path / "m.png")


@pytest.mark.parametrize("lie", ["coords", "features", "stated"])
def test_features_that_no_reader_would_give_are_refused(
    lie: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["coords"], file["features"] = np.zeros((2, 2), np.int64), np.ones((2, 8), np.float32)
    if lie == "stated":
        for stated in ({"patch_size": 1e308}, {"patch_size": -5.0}, {"patch_size": np.nan}):
            with pytest.raises(ValidationError):
                FeaturesFacts(patches=2, dim=8, stated=stated, slide=None)
        return
    lies = {"coords": np.full((2, 2), 1 << 62), "features": np.array([[1] * 8, [np.nan] * 8])}
    honest = FeaturesFile._read

    def read(file: FeaturesFile, what: str, *more: Any) -> Any:
        return lies[what] if what == lie else honest(file, what, *more)

    monkeypatch.setattr(FeaturesFile, "_read", read)
    with pytest.raises(InputError, match=r"f\.h5 has (patches far beyond|features that are not)"):
        read_features(path)


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
