"""Measure whether segmenters learn as much from sampled label maps as from real ones.

    python -m benchmarks.sampled_maps TILES --classes gland --mpp 0.5 --region-mpp 0.875 \\
        --slide 'patient(\\d+)' --out out/sampled-maps

TILES is a folder of tiles beside their masks, in subfolders train, val and test. The shipped
student is published with a layout model of the training maps. It makes two datasets of training
crops: one of real maps, and one of sampled maps with the same class shares. Segmenters learn from
each, and are scored on the real test tiles. Prints JSON, with the figures of `layouts.py` on the
test maps.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

from benchmarks.layouts import measure
from benchmarks.quality import run_htd
from benchmarks.segmenters import scored, spread, trained
from services.evaluate.data import gather
from shared.computing import prepare
from shared.contracts.evaluate import EvaluateRequest
from shared.storage import open_store

DATASETS = {"real": "", "sampled": "--sample-maps"}
SEEDS = 3


def main() -> None:
    """Make the datasets, train the segmenters, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--classes", required=True)
    parser.add_argument("--mpp", required=True)
    parser.add_argument("--region-mpp", required=True)
    parser.add_argument("--slide", required=True, help="regular expression of a tile's patient")
    parser.add_argument("--images", default="1500", help="of each dataset")
    parser.add_argument("--layout-steps", default="1500", help="of the layout model's training")
    parser.add_argument("--out", type=Path, default=Path("out/sampled-maps"))
    given = parser.parse_args()
    made = f"synthesize --model maps --images {given.images} --dataset"
    for command in (
        f"tiles {quote(str(given.folder))} --cohort maps --classes {quote(given.classes)} "
        f"--mpp {given.mpp} --region-mpp {given.region_mpp} --region-size 128 "
        f"--slide {quote(given.slide)}",
        "train --regions maps --model maps --recipe cpu-small --warm-start colon-student --as-is "
        f"--set recipe.layouts.steps={given.layout_steps}",
        *(f"{made} {name} {more}" for name, more in DATASETS.items()),
    ):
        run_htd(command, given.out / "store")
    prepare(int(os.environ.get("OMP_NUM_THREADS", "2")))
    store = open_store(str(given.out / "store"))
    figures: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()}
    for name in DATASETS:
        material = gather(store, EvaluateRequest(report=name, dataset=name))
        classes, size = material.dataset.classes, material.dataset.size
        found = [
            scored(trained(material.synthetic, classes, size, seed), material.test, classes, size)
            for seed in range(SEEDS)
        ]
        figures[f"iou of {name} maps"] = spread([one.mean_iou or 0.0 for one in found])
        figures |= {"images": len(material.synthetic), "test tiles": len(material.test)}
        print(json.dumps(figures), flush=True)
    real, sampled = (figures[f"iou of {name} maps"]["mean"] for name in DATASETS)
    figures["sampled_maps_iou_ratio"] = sampled / real
    figures["layouts"] = measure(store, "maps", "test", 305)
    text = json.dumps(figures, indent=1)
    (given.out / "sampled_maps.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
