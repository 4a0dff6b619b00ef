"""`--dry-run`: the plan is printed and the store stays as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from heterotissue import cli
from heterotissue.cli.app import app
from heterotissue.running import Target
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.jobs.stage import RecordingStore
from shared.storage import DirectoryStore, OverlayStore, sha256
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.store_contract import check_store


def htd(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["htd", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_every_command_that_submits_a_request_has_it() -> None:
    group = get_command(app)
    commands = [
        each
        for command in group.commands.values()  # type: ignore[attr-defined]
        for each in getattr(command, "commands", {"": command}).values()
    ]
    submitting = [each for each in commands if any(p.name == "broker" for p in each.params)]
    assert len(submitting) >= 11
    for each in submitting:
        assert any(param.name == "dry_run" for param in each.params), each.name


class PassedError(InputError):
    """Raised instead of opening a store."""


@pytest.mark.parametrize(
    "words",
    [
        "ingest x", "tiles . --classes a --mpp 1", "embed", "cluster", "train --regions r",
        "distill --model m --into s", "deploy --model m", "evaluate", "study --model m",
        "pipeline x", "jobs retry x", "synthesize --model m",
    ],
)  # fmt: skip
def test_every_command_passes_it_on(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(store: object, broker: object, dry_run: bool = False) -> Target:
        raise PassedError if dry_run else AssertionError(f"{words} would run")

    monkeypatch.setattr(Target, "of", of)
    assert htd(monkeypatch, *words.split(), "--dry-run") == 2


def test_an_overlay_is_a_store_that_leaves_the_other_alone(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path / "store")
    check_store(OverlayStore(inner), tmp_path)
    assert list(inner.list()) == []


def test_an_overlay_shows_both(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path)
    inner.put("a/x", b"1")
    inner.put("a/y", b"2")
    store = OverlayStore(inner)
    store.put("a/y", b"22")
    store.put("b/z", b"3")
    store.delete("a/x")
    assert not store.create("b/z", b"4")
    assert list(store.list()) == ["a/y", "b/z"]
    assert (store.get("a/y"), store.size("a/y"), store.exists("a/x")) == (b"22", 2, False)
    assert {key: inner.get(key) for key in inner.list()} == {"a/x": b"1", "a/y": b"2"}


def test_slides_are_looked_at_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    picture = np.full((400, 400, 3), (200, 120, 160), np.uint8)  # pink as H&E
    for number, name in enumerate(("good", "plain")):
        (slides / f"{name}.png").write_bytes(encode_png(picture - number))
    (slides / "bad.svs").write_bytes(b"no slide")
    square = [[0, 0], [200, 0], [200, 400], [0, 400], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "tumor"}},
    }
    (slides / "good.geojson").write_text(json.dumps([feature]))
    store = tmp_path / "store"
    monkeypatch.setenv("COLUMNS", "200")
    code = htd(
        monkeypatch, "ingest", str(slides), "--classes", "tumor,stroma", "--mpp", "0.5",
        "--region-size", "64", "--store", str(store), "--dry-run",
    )  # fmt: skip
    shown = capsys.readouterr().err
    assert code == 3
    assert not store.exists()
    assert "tumor 50%" in shown
    assert "good.geojson" in shown
    assert "not found" in shown
    assert "0.5 (given)" in shown
    assert "bad.svs: cannot be opened" in shown
    assert "to do: 2 of 2 units" in shown
    rows = {words[0]: words[1:] for line in shown.splitlines() if (words := line.split())}
    assert rows["good"][2:5] == ["(given)", "100%", "h&e"]
    assert rows["slides"] == ["1", "0", "1"]  # train, val, test


def test_a_dataset_is_planned_and_costed_by_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    words = ["synthesize", "--model", "toy", "--steps", "1", "--store", str(tmp_path), "--images"]
    before = list(store.list())
    assert htd(monkeypatch, *words, "8", "--dry-run") == 0
    shown = capsys.readouterr().err
    assert "time and storage: not known" in shown
    assert "images: 8" in shown
    assert list(store.list()) == before
    assert htd(monkeypatch, *words, "8") == 0
    capsys.readouterr()
    before = list(store.list())
    other = ("--set", "shard_size=64", "--set", "dataset=large", "--dry-run")
    assert htd(monkeypatch, *words, "256", *other) == 0
    shown = capsys.readouterr().err
    assert "to do: 4 of 4 units" in shown
    assert "earlier units of this store took (1)" in shown
    assert list(store.list()) == before
    assert htd(monkeypatch, *words, "8", "--dry-run") == 0
    assert "done already" in capsys.readouterr().err


def test_what_would_be_refused_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("embed", "--cohort", "none", "--store", str(tmp_path), "--dry-run")
    assert htd(monkeypatch, *words) == 2
    assert "needs cohorts/none.json" in capsys.readouterr().err


def test_a_pipeline_is_planned_as_far_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path / "store")
    publish_toy_model(store, make_region_set(store))
    file = tmp_path / "study.yaml"
    file.write_text(
        "requests:\n- {stage: synthesize, dataset: d, model: toy}\n"
        "- {stage: evaluate, report: r, dataset: d}\n"
    )
    assert htd(monkeypatch, "pipeline", str(file), "--store", store.url, "--dry-run") == 0
    shown = capsys.readouterr().err
    assert "dry run of 'd'" in shown
    assert "its plan is made after the earlier requests" in shown


def test_a_file_that_a_plan_writes_can_be_read_in_a_dry_run(tmp_path: Path) -> None:
    overlay = OverlayStore(DirectoryStore(tmp_path))
    store = RecordingStore(overlay, lambda: None)
    with store.writing("a/b.tif") as path:
        path.write_bytes(b"labels")
    assert store.local("a/b.tif").read_bytes() == b"labels"
    assert store.outputs == {"a/b.tif": sha256(b"labels")}
    assert not list(tmp_path.iterdir())
