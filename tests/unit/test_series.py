"""Series of images in folders: they go on after an interruption, and keep what is not theirs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import heterotissue.edits
import heterotissue.lesions
from shared.diffusion.model_store import LoadedModel
from shared.settings import settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_cli import htd
from tests.unit.test_editing import put_plain_slide

Run = Callable[..., int]

COMMANDS = {
    "lesions": ["lesions", "--model", "toy", "--regions", "two", "--tissue", "tumor"],
    "pairs": ["pairs", "map.png", "--model", "toy", "--other-crop", "tumor=crop.png"],
    "vary": ["vary", "a.png", "--model", "toy", "--labels", "map.png"],
}
PAINTERS = {
    "lesions": (heterotissue.lesions, "paint"),
    "pairs": (LoadedModel, "generate"),
    "vary": (heterotissue.edits, "redraw"),
}
"""Command → what makes an image for it, or a batch of them."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    torch.set_num_threads(1)
    made = DirectoryStore(tmp_path_factory.mktemp("series"))
    publish_toy_model(made, make_region_set(made, splits={"slide-a": "train"}, regions=2))
    put_plain_slide(made)
    return made


@pytest.fixture
def run(store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one of `COMMANDS` with more words, in a folder with its files; return its exit code."""
    image = np.random.default_rng(0).integers(100, 200, (32, 32, 3), dtype=np.uint8)
    labels = np.ones((32, 32), np.uint8)
    labels[:, 16:] = 2
    crop = np.full((12, 12, 3), 90, np.uint8)
    for name, array in (("a", image), ("map", labels), ("crop", crop), ("b", image[::-1])):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTD_THREADS", "1")
    monkeypatch.setenv("HTD_STORE", store.url)
    settings.cache_clear()
    return lambda name, *words: htd(monkeypatch, *COMMANDS[name], *words)


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, after: int) -> None:
    """Let the painter of a command be interrupted after some calls, and later calls pass."""
    owner, attribute = PAINTERS[name]
    painter, calls = getattr(owner, attribute), list[int]()

    def paint(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return painter(*args)

    monkeypatch.setattr(owner, attribute, paint)


def content(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("name", "n", "after", "kept"),
    [
        ("lesions", 3, 1, "painted/000000.png"),
        ("pairs", 9, 2, "0000-first.png"),
        ("vary", 3, 1, "a-0000.png"),
    ],
)
def test_the_same_command_continues_an_interrupted_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, n: int, after: int, kept: str,
) -> None:  # fmt: skip
    assert run(name, "--n", str(n), "--out", "whole") == 0
    whole = content("whole")
    interrupt(monkeypatch, name, after)
    assert run(name, "--n", str(n), "--out", "cut") == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    cut = content("cut")
    assert 0 < len(cut) < len(whole)
    if name == "lesions":
        assert len(cut["lesions.csv"].splitlines()) == 1 + after, "a row for each image"
    written = Path("cut", kept).stat().st_mtime_ns
    assert run(name, "--n", str(n), "--out", "cut") == 0
    assert content("cut") == whole
    assert Path("cut", kept).stat().st_mtime_ns == written, "what was whole is kept"

    lost = max(path for path in whole if path.endswith("0001.png"))  # as after kill -9
    Path("cut", lost).unlink()
    Path("cut", f"{lost}.part").write_bytes(whole[lost][:9])
    with next(Path("cut").glob("*.sha256")).open("a") as file:
        file.write("0123")
    if name == "lesions":
        Path("cut/lesions.csv").write_bytes(whole["lesions.csv"][:-20])
    assert run(name, "--n", str(n), "--out", "cut") == 0
    assert content("cut") == whole

    assert run(name, "--n", str(n - 1), "--out", "cut") == 2
    assert f"differs in --n ({n} there" in capsys.readouterr().err
    assert content("cut") == whole
    assert run(name, "--n", str(n + 1), "--out", "cut") == 0
    assert run(name, "--n", str(n + 1), "--out", "more") == 0
    assert content("cut") == content("more")


def test_a_killed_beginning_is_no_obstacle(run: Run) -> None:
    Path("cut").mkdir()
    Path("cut/lesions.json.part").write_text("{")
    assert run("lesions", "--n", "1", "--out", "cut") == 0
    assert run("lesions", "--n", "1", "--out", "whole") == 0
    assert content("cut") == content("whole")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("lesions", ("--seed", "1"), "--seed (0 there)"),
        ("lesions", ("--smallest", "0.1"), "--smallest (0.05 there)"),
        ("lesions", ("--without", "region"), "--without (slide there)"),
        ("pairs", ("--crop", "tumor=a.png", "--crop", "stroma=a.png"), "the crop of tumor of the"),
        ("pairs", ("--other-labels", "ones.png"), "the map of the second images"),
        ("vary", ("--strength", "0.5"), "--strength (0.75 there)"),
        ("vary", ("--crop", "tumor=crop.png"), "the crop of tumor"),
        ("vary", ("--labels", "ones.png"), "the labels"),
    ],
)
def test_another_request_is_refused_by_what_differs(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...], said: str
) -> None:
    ones = np.ones((32, 32), np.uint8)
    ones[:, 30:] = 2
    Image.fromarray(ones).save("ones.png")
    assert run(name, "--n", "1", "--out", "made") == 0
    made = content("made")
    assert run(name, "--n", "1", "--out", "made", *words) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--out made holds images of another request" in message
    assert said in message
    assert content("made") == made


def test_another_picture_model_and_region_set_are_refused(
    run: Run, store: DirectoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lesions", "vary"):
        assert run(name, "--n", "1", "--out", name) == 0
    Path("b.png").replace("a.png")
    assert run("vary", "--n", "1", "--out", "vary") == 2
    assert "differs in the picture" in capsys.readouterr().err
    model, regions = "models/toy/1/model.json", "regions/two/set.json"
    for key, old, new, said in (
        (model, b'"run": "none"', b'"run": "other"', "the weights"),
        (regions, b'"cohort": "toy"', b'"cohort": "other"', "the training regions"),
    ):
        before = store.get(key)
        assert old in before
        store.put(key, before.replace(old, new))
        assert run("lesions", "--n", "1", "--out", "lesions") == 2
        assert f"differs in {said}" in capsys.readouterr().err
        store.put(key, before)


def test_a_refusal_writes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lesions", "--smallest", "0.89", "--largest", "0.9", "--out", "none") == 2
    assert "no place for a lesion" in capsys.readouterr().err
    assert run("vary", "--labels", "map.png", "--crop", "tumor=a.png", "--crop", "tumor=b.png",
               "--out", "none") == 2  # fmt: skip
    assert "class 'tumor' has several crops" in capsys.readouterr().err
    assert not Path("none").exists()


def test_variations_replace_no_file_of_others(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    real = Path("a-0000.png")
    real.write_bytes(Path("crop.png").read_bytes())
    assert run("vary", "--n", "1", "--out", ".") == 2
    assert "a-0000.png was not made by this command" in capsys.readouterr().err
    assert real.read_bytes() == Path("crop.png").read_bytes()
    assert not Path("a-variations.json").exists()
    real.rename("a-real.png")
    assert run("vary", "--n", "1", "--out", ".") == 0
    assert "variations: . (1 picture)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lesions", "before/000001.mask.png"),
        ("pairs", "0001-second.png"),
        ("vary", "a-0001.png"),
    ],
)
def test_another_file_in_the_place_of_an_image_is_not_taken_for_it(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, file: str
) -> None:
    assert run(name, "--n", "1", "--out", "made") == 0
    strange = Path("made", file)
    for said in (  # before the image is made, and after
        f"--out made holds {file}, which was not made by this command",
        f"{strange} is not as this command wrote it",
    ):
        strange.write_bytes(Path("crop.png").read_bytes())
        made = content("made")
        assert run(name, "--n", "2", "--out", "made") == 2
        assert said in " ".join(capsys.readouterr().err.split())
        assert content("made") == made
        strange.unlink()
        assert run(name, "--n", "2", "--out", "made") == 0
    (record,) = Path("made").glob("*.sha256")
    subprocess.run(["sha256sum", "--check", "--strict", record.name], cwd="made", check=True)


@pytest.mark.parametrize("name", ["lesions", "pairs"])
def test_a_folder_of_other_files_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path("own").mkdir()
    Path("own/notes.txt").touch()
    assert run(name, "--n", "1", "--out", "own") == 2
    assert "--out own is not empty: notes.txt was not made" in capsys.readouterr().err
    Path(f"own/{name}.json").write_text('{"model": "toy/1", "seeds": []}')  # of an older version
    assert run(name, "--n", "1", "--out", "own") == 2
    assert "does not say what the images beside it are made from" in capsys.readouterr().err
    assert run(name, "--n", "1", "--out", "a.png") == 2
    assert "--out a.png is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option"),
    [("vary", "--strength"), ("lesions", "--smallest"), ("lesions", "--largest")],
)
def test_numbers_are_finite_and_within_bounds(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, option: str
) -> None:
    assert run(name, option, "nan", "--out", "x") == 2
    assert f"error: {option}: must be a finite number, not nan" in capsys.readouterr().err
    assert run(name, option, "1.5", "--out", "x") == 2
    assert f"error: {option}: must be less than or equal to" in capsys.readouterr().err
