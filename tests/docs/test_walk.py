"""A walk through the documentation: shell blocks without a mark are run, in order, but smaller."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from heterotissue import cli
from shared.imaging.codec import encode_png
from shared.phantom import write_phantom
from shared.settings import settings
from tests.docs.pages import PAGES, ROOT, blocks, commands, lines, name
from tests.phantoms import PHANTOM_SEED

WALK = ("docs/slides.md", "docs/recipes.md", "docs/serving.md", "docs/scale.md")
"""Pages in the order in which their blocks build on each other."""

SMALLER = {
    "--count 4": f"--count 1 --side 1024 --seed {PHANTOM_SEED}",
    "--region-size 256 --region-mpp 0.5": (
        "--region-size 128 --region-mpp 1.0 --set regions.max_per_slide=4 --set split.test=0.3"
    ),
    "embed --cohort lung": "embed --cohort lung --set train_steps=3 --set train_patches=64",
    "--k 100": "--k 4 --region-size 128 --region-mpp 1.0 --set sample_per_slide=50",
    "--recipe base": "--recipe toy.yaml",
    "--recipe cpu-small --model crc": "--recipe toy.yaml --model crc",
    "--recipe cpu-small --model paperlike": "--recipe toy.yaml --model paperlike",
    "--images 10000 --proportion": "--images 4 --steps 2 --proportion",
    "evaluate --dataset dataset": (
        "evaluate --dataset dataset --encoder random --set segmenter_steps=2"
        " --set segmenter_batch=2"
    ),
    "tiles crc/": "tiles crc/ --region-size 64",
    "study --model crc": (
        "study --model crc --images 4 --encoder random --seeds 1 --segmenter-steps 2 --steps 1"
        " --few 0.4"
    ),
    "--into lung-fast --steps 1000": "--into lung-fast --steps 2",
    "--images 1000000": "--images 1000000 --batch 2",
}
"""Words of the documentation → the same with small sizes."""

RECIPE = {
    "name": "toy", "size": 64, "segment_steps": 2, "sample_every": 4,
    "vae": {"channels": [8, 16, 16], "latent_channels": 4, "steps": 2, "batch_size": 2, "crop": 64},
    "denoiser": {
        "channels": [32, 64], "attention": [False, True], "condition_channels": 32, "steps": 2,
        "batch_size": 2,
    },
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to walk in, with a small recipe."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HTD_STORE", "HTD_BROKER_URL", "HTD_TRITON_URL"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RECIPE))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def draw_tiles(folder: Path, side: int, left: int, right: int) -> None:
    """Draw six tiles, a patient each, half of them for tests, with two labels side by side."""
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "train", "test", "test", "test")):
        (folder / split).mkdir(parents=True, exist_ok=True)
        tile = rng.integers(100, 220, (side, side, 3), np.uint8)
        mask = np.full((side, side), left, np.uint8)
        mask[:, side // 2 :] = right
        (folder / split / f"patient{number}.png").write_bytes(encode_png(tile))
        (folder / split / f"patient{number}.mask.png").write_bytes(encode_png(mask))


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_every_block_without_a_mark_is_walked() -> None:
    for page in PAGES:
        for block in blocks(page, "sh"):
            assert block.needs or name(page) in WALK, f"{block.place}: it is not run: mark it"


def test_the_blocks_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for title, height in (("a", 1024), ("b", 1536)):  # of one seed, since textures take long
        write_phantom(workplace / "slides", f"phantom-{title}", 1024, height, PHANTOM_SEED)
    draw_tiles(workplace / "crc", 64, 0, 1)
    unused = set(SMALLER)
    for page in WALK:
        for block in blocks(ROOT / page, "sh"):
            for line in [] if block.needs else lines(block.text):
                for words in SMALLER:
                    if words in line:
                        unused.discard(words)
                        line = line.replace(words, SMALLER[words])
                for command in commands(line):
                    assert command[0] == "htd", f"{block.place}: mark what needs {command[0]}"
                    assert run(monkeypatch, command) == 0, f"{block.place}: {line}"
    assert not unused, f"no longer in the documentation: {sorted(unused)}"
    store = workplace / "out" / "store"
    for made in (
        "regions/lung/set.json", "clusters/lung-types/types.yaml", "models/lung/1/model_index.json",
        "datasets/dataset/exports/coco", "reports/report/report.html", "reports/study/report.html",
        "models/paperlike/1/model.json", "models/shipped/1/model.json",
        "models/lung-fast/1/model.json",
    ):  # fmt: skip
        assert (store / made).exists(), made
    assert list((workplace / "out" / "dataset").rglob("*.png"))


def test_a_folder_of_tiles_becomes_a_report_with_the_recipe_of_the_help(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_tiles(workplace / "lab", 128, 1, 2)
    for line in (
        "htd tiles lab/ --cohort lab --classes a,b --mpp 1.0 --region-mpp 1.0",
        "htd train --regions lab --model lab --recipe tiny --warm-start starter"
        " --set recipe.denoiser.steps=2 --set recipe.denoiser.batch_size=2"
        " --set recipe.denoiser.warmup=0",
        "htd synthesize --model lab --dataset lab --images 4 --steps 1",
        "htd evaluate --dataset lab --report lab --set segmenter_steps=2 --set segmenter_batch=2",
    ):
        assert run(monkeypatch, line.split()) == 0, line
    assert (workplace / "out" / "store" / "reports" / "lab" / "report.html").exists()
