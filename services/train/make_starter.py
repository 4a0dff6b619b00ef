"""Make the starter checkpoint: phantom slides → regions → training → `starter.safetensors`.

`make starter` runs this module, for about half an hour on two CPU cores. If it is killed, run it
again: it resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml

from services.train.package_checkpoint import package_checkpoint
from services.train.stage import TrainStage
from services.train.warm_start import packaged_path
from shared.computing import prepare
from shared.contracts.base import Split
from shared.contracts.recipe import Recipe
from shared.contracts.regions import (
    RegionRule,
    RegionSet,
    RegionSetSlide,
    region_set_key,
    region_tar_key,
)
from shared.contracts.train import TrainRequest
from shared.imaging.label_map import enlarge
from shared.imaging.region_sets import Region, pack_regions
from shared.imaging.windows import choose_windows
from shared.jobs import Ledger, Reporter, run_job
from shared.phantom import PHANTOM_CLASSES, PhantomSlide
from shared.phantom.glands import SCALE
from shared.phantom.texture import MPP
from shared.storage import Store, open_store, sha256

SLIDES = 24
SIDE = 4096
"""Side of a phantom slide, in pixels."""
RULE = RegionRule(
    size=128, mpp=1.0, low=0.2, high=1.0, min_classes=1, overlap=0.5, max_per_slide=500
)


def slide_regions(slide: PhantomSlide, name: str) -> Iterator[Region]:
    """Cut the regions of a phantom slide, at twice the slide's mpp."""
    labels = slide.labels(0, 0, slide.rows, slide.columns)
    ratio = RULE.mpp / (MPP * SCALE)
    side, stride = round(RULE.size * ratio), round(RULE.stride * ratio)
    size = (RULE.size, RULE.size)
    for window in choose_windows(labels, len(PHANTOM_CLASSES), side, stride, RULE):
        part = labels[window.y : window.y + side, window.x : window.x + side]
        image = slide.render(window.y, window.x, side, side)
        yield Region(
            f"{name}_{window.x * SCALE}_{window.y * SCALE}",
            name,
            np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8),
            enlarge(part, size),
        )


def write_regions(store: Store) -> None:
    """Write the region set `starter` of phantom slides, if it is missing; the last is for tests."""
    if store.exists(region_set_key("starter")):
        return
    parts = []
    for number in range(SLIDES):
        name = f"phantom-{number}"
        split: Split = "train" if number < SLIDES - 1 else "test"
        regions = list(slide_regions(PhantomSlide(SIDE, SIDE, number), name))
        tar = pack_regions(regions)
        store.put(region_tar_key("starter", name), tar)
        parts.append(
            RegionSetSlide(slide=name, split=split, regions=len(regions), sha256=sha256(tar))
        )
        print(f"{name}: {len(regions)} regions", file=sys.stderr)
    record = RegionSet(
        name="starter",
        cohort="starter",
        labels="annotation",
        classes=PHANTOM_CLASSES,
        rule=RULE,
        slides=tuple(parts),
    )
    store.put_json(region_set_key("starter"), record)


class Lines(Reporter):
    """Prints the progress of a unit every 50 steps."""

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        if done % 50 == 0 or done == total:
            print(f"{unit} {done}/{total} {note}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="out/starter", help="store of regions and checkpoints")
    parser.add_argument("--output", type=Path, default=packaged_path("starter"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    prepare(arguments.threads)
    store = open_store(arguments.store)
    write_regions(store)
    recipe = Recipe.model_validate(
        yaml.safe_load((Path(__file__).parent / "recipes/starter.yaml").read_text())
    )
    request = TrainRequest(run="starter", regions="starter", recipe=recipe, model="starter")
    ledger = Ledger(store)
    status = run_job(ledger, TrainStage(), ledger.submit(request), reporter=Lines())
    if status.state != "done":
        sys.exit(f"training ended {status.state}: {status.failed}")
    package_checkpoint(store, "models/starter/1", arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
