"""Compare sampled label maps with real ones that their layout model has not seen.

    python benchmarks/layouts.py STORE MODEL [--split val] [--count 500]

Both, and as many real maps of the training split, are described by the share, the pieces, and the
borders of each class, in units of their spread over the training maps. Prints JSON: for sampled
maps and for training maps, the means beside those of the held-out maps, precision and recall
(Kynkäänniemi et al. 2019), and the agreement with the nearest training map.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from skimage.measure import label as pieces

from services.evaluate.coverage import manifold_scores
from shared.arrays import Float64, UInt8
from shared.contracts.base import Split
from shared.contracts.models import ModelRecord
from shared.diffusion.layouts import sample_layouts
from shared.diffusion.model_store import load_layouts
from shared.imaging.augment import symmetry
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.models import find_version, read_model
from shared.seeds import image_seed
from shared.storage import Store, open_store

MIN_PIECE = 16
"""Pixels of the smallest piece that counts."""

COARSE = 32
"""Side of the grids in which maps are compared pixel by pixel."""

NAMES = ("share", "pieces", "largest piece", "border")


def describe(labels: UInt8, count: int) -> Float64:
    """Describe a label map: share, pieces, largest piece and border of each label, (count · 4,).

    Shares and the largest piece are shares of the map; the border is its number of pixel sides to
    other labels, in sides of the map.
    """
    found = []
    for value in range(count):
        mask = labels == value
        sizes = np.bincount(pieces(mask, connectivity=1).ravel())[1:]
        border = sum(int((mask != np.roll(mask, 1, axis))[1:, 1:].sum()) for axis in (0, 1))
        found += [
            mask.mean(), (sizes >= MIN_PIECE).sum(), sizes.max(initial=0) / mask.size,
            border / len(labels),
        ]  # fmt: skip
    return np.array(found, np.float64)


def real_maps(store: Store, model: ModelRecord, split: Split, count: int) -> list[UInt8]:
    """Return the central windows of some regions of a split."""
    index = RegionIndex(store, load_region_set(store, model.regions), split)
    chosen = np.random.default_rng(0).permutation(len(index))[:count]
    corner = (index.record.rule.size - model.size) // 2
    window = np.s_[corner : corner + model.size, corner : corner + model.size]
    return [index.labels(int(number))[window] for number in chosen]


def nearest_agreement(maps: Sequence[UInt8], train: Sequence[UInt8]) -> float:
    """Return the mean share of pixels in which a map agrees with its nearest training map.

    Maps are compared on a grid of `COARSE` cells, in all turns of the training maps.
    """

    def coarse(labels: UInt8) -> UInt8:
        step = len(labels) // COARSE
        return labels[step // 2 :: step, step // 2 :: step][:COARSE, :COARSE]

    bank = np.stack([symmetry(coarse(one), turn).ravel() for one in train for turn in range(8)])
    return float(np.mean([(bank == coarse(one).ravel()).mean(1).max() for one in maps]))


def compare(
    maps: Sequence[UInt8], held_out: Sequence[UInt8], train: Sequence[UInt8], count: int
) -> dict[str, object]:
    """Compare maps with held-out ones; `train` gives the units, and is searched for copies."""
    own, real, unit = (
        np.stack([describe(one, count) for one in part]) for part in (maps, held_out, train)
    )
    spread = np.maximum(unit.std(0), 1e-6)
    scores = manifold_scores(
        ((real - unit.mean(0)) / spread).astype(np.float32),
        ((own - unit.mean(0)) / spread).astype(np.float32),
    )
    return {
        "means": {
            f"{name} of {value}": round(float(own[:, value * len(NAMES) + place].mean()), 4)
            for value in range(count)
            for place, name in enumerate(NAMES)
        },
        "gap": round(float(np.abs((own.mean(0) - real.mean(0)) / spread).mean()), 4),
        "precision": round(scores.precision, 4),
        "recall": round(scores.recall, 4),
        "nearest training map": round(nearest_agreement(maps, train), 4),
    }


def measure(store: Store, name: str, split: Split, count: int) -> dict[str, object]:
    """Compare maps that a model samples with those of a split; `count`: at most so many."""
    model = read_model(store, find_version(store, name))
    layouts, kinds = load_layouts(store, model), len(model.classes)
    train = real_maps(store, model, "train", 10 * count)
    held_out = real_maps(store, model, split, count)
    n = len(held_out)
    asked = [np.bincount(one.ravel(), minlength=kinds) / one.size for one in train[:n]]
    sampled = [
        sample_layouts(layouts, [shares.tolist()], [image_seed(0, number)], model.size)[0]
        for number, shares in enumerate(asked)
    ]
    rest = train[n:]
    made = [np.bincount(one.ravel(), minlength=kinds) / one.size for one in sampled]
    return {
        "n": n,
        "held out": compare(held_out, held_out, rest, kinds)["means"],
        "sampled": compare(sampled, held_out, rest, kinds),
        "training": compare(train[:n], held_out, rest, kinds),
        "nearest training map of held out": round(nearest_agreement(held_out, rest), 4),
        "error of shares": round(float(np.abs(np.array(made) - asked).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--count", type=int, default=500)
    given = parser.parse_args()
    found = measure(open_store(given.store), given.model, given.split, given.count)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
