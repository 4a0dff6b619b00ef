"""The benchmark for a day with a GPU, rehearsed on the CPU with a tiny recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_day import __main__ as gpu_day
from benchmarks.gpu_day.day import Day

RECIPE = """
name: toy
size: 32
precision: bf16
vae: {channels: [8, 16], latent_channels: 4, steps: 1}
denoiser: {channels: [32, 64], attention: [false, true], condition_channels: 32}
"""
STEPS = "peak_teraflops,versions,plans,errors,rows,decoder,triton"


def test_every_step_leaves_its_figures_or_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    out = tmp_path / "day.json"
    arguments = [
        "--recipe", str(tmp_path / "toy.yaml"), "--out", str(out), "--most-rows", "4", "--seconds",
        "0.2", "--only", STEPS,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["gpu_day", *arguments])
    gpu_day.main()
    found = json.loads(out.read_text())
    assert found["versions"]["packages"]["torch"]
    assert "no TensorRT here" in found["plans"]["error"]
    for part, shapes in found["errors"].items():
        for gap in shapes["pytorch"].values():
            assert 0 < gap["mean"] < 0.05 * gap["spread"], part  # of bf16
    assert found["rows"]["4"]["kernels"]["ms"] > 0
    assert found["decoder"]["4"] > 0
    served = found["triton pytorch"]
    assert min(served["images_per_second"].values()) > 0
    assert served["same_bytes"]
    assert set(served["latency"]) == {"idle", "loaded"}
    assert found["triton killed"]["same_bytes"]
    assert "Triton" in found["triton killed"]["error"]
    assert set(found["seconds"]) >= {"plans", "triton pytorch"}


def test_a_step_without_time_is_left_out_and_one_that_fails_says_why(tmp_path: Path) -> None:
    day = Day(tmp_path / "day.json", seconds=10)
    day.step("long", 60, lambda: 1)
    day.step("broken", 1, lambda: 1 / 0)
    day.step("last", 1, lambda: {"figure": 2})
    found = json.loads((tmp_path / "day.json").read_text())
    assert "it needs 60 s" in found["long"]["left_out"]
    assert found["broken"] == {"error": "ZeroDivisionError: division by zero"}
    assert found["last"] == {"figure": 2}
