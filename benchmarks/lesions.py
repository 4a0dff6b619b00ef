"""Measure what painted lesions are worth where few tiles show one.

    python -m benchmarks.lesions TILES --out out/lesions

TILES is EBHI-Seg: train/<class>/ and test/<class>/ with tiles beside their masks. All classes but
adenocarcinoma are the class "gland". Of the patients with a carcinoma, one in ten is left, so that
this tenth and all other tiles are the training set. `colon` learns the three classes on it, paints
carcinomas into tiles of the other patients, and segmenters learn with and without these. They
are scored on all test tiles. (`colon` itself has seen all training tiles, as glands.)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fields import SIZE, Tile
from benchmarks.quality import run_htd
from benchmarks.segmenters import TilePairs, scored, spread, trained
from services.evaluate.data import Pairs, RealPairs
from shared.computing import prepare
from shared.contracts.base import Split
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.storage import open_store

LESION, OTHERS, SOURCE = "carcinoma", "gland", "adenocarcinoma"
PATIENT = r"GT\D*(\d+)"
TENTH = 10
SEEDS = 3


def choose_tiles(folder: Path, out: Path) -> dict[str, int]:
    """Copy the tiles of the experiment to <out>/<split>/<class>/; return their numbers."""
    counts: dict[str, int] = {}
    for split in ("train", "test"):
        for kind in sorted((folder / split).iterdir()):
            files = sorted(kind.iterdir())
            if split == "train" and kind.name == SOURCE:
                patients = sorted({_patient(file) for file in files})
                kept = np.random.default_rng(0).permutation(patients)[: -(-len(patients) // TENTH)]
                files = [file for file in files if _patient(file) in kept]
            target = out / split / (LESION if kind.name == SOURCE else OTHERS)
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, target / f"{kind.name}-{file.name}")
            name = f"{split} tiles of {target.name}"
            counts[name] = counts.get(name, 0) + len(files) // 2
    return counts


def _patient(file: Path) -> str:
    found = re.search(PATIENT, file.name)
    if found is None:
        raise SystemExit(f"{file.name}: no patient in the name")
    return found[1]


def read_painted(folder: Path) -> TilePairs:
    """Read the painted tiles of `htd lesions`."""
    tiles = []
    for file in sorted((folder / "painted").glob("*.mask.png")):
        image = file.with_name(file.name.replace(".mask", ""))
        tiles.append(Tile(np.asarray(Image.open(image)), np.asarray(Image.open(file)), image.stem))
    return TilePairs(tiles)


def main() -> None:
    """Train, paint, train the segmenters, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", default="1000", help="of the denoiser's training")
    parser.add_argument("--painted", default="500", help="number of painted tiles")
    parser.add_argument("--out", type=Path, default=Path("out/lesions"))
    given = parser.parse_args()
    tiles, painted = given.out / "tiles", given.out / "painted"
    for folder in (tiles, painted):
        shutil.rmtree(folder, ignore_errors=True)
    figures: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()}
    figures |= choose_tiles(given.folder, tiles)
    for command in (
        f"tiles {quote(str(tiles))} --cohort lesions --classes {OTHERS},{LESION} --mpp 0.5 "
        f"--region-mpp 0.875 --region-size {SIZE} --slide {quote(PATIENT)}",
        "train --regions lesions --model lesions --recipe cpu-small --warm-start colon "
        "--set recipe.vae.decoder_steps=0 --set recipe.denoiser.views=8 "
        f"--set recipe.denoiser.steps={given.steps}",
        f"lesions --model lesions --tissue {LESION} --n {given.painted} --smallest 0.1 "
        f"--largest 0.6 --out {quote(str(painted))}",
    ):
        run_htd(command, given.out / "store")
    prepare(int(os.environ.get("OMP_NUM_THREADS", "2")))
    store = open_store(str(given.out / "store"))
    record = load_region_set(store, "lesions")

    def real(split: Split) -> Pairs:
        index = RegionIndex(store, record, split)
        return RealPairs(index, range(len(index)), np.arange(256, dtype=np.uint8))

    train, test, synthetic = real("train"), real("test"), read_painted(painted)
    figures["painted tiles"] = len(synthetic)
    means = []
    for name, beside in (("without", None), ("with", synthetic)):
        found = [
            scored(trained(train, record.classes, SIZE, seed, beside), test, record.classes, SIZE)
            for seed in range(SEEDS)
        ]
        means.append([one.mean_iou or 0.0 for one in found])
        figures[f"mean IoU {name} painted tiles"] = spread(means[-1])
        lesion = [one.iou[-1] or 0.0 for one in found]
        figures[f"IoU of {LESION} {name} painted tiles"] = spread(lesion)
        print(json.dumps(figures), flush=True)
    figures["gain"] = float(np.mean(means[1]) - np.mean(means[0]))
    text = json.dumps(figures, indent=1)
    (given.out / "lesions.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
