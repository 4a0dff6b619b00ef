"""Draw a picture of the same label maps in several appearances.

    python benchmarks/picture.py STORE MODEL/VERSION DATASET docs/images/appearances.webp

The label maps are drawn by this script, and the crops are cut from synthetic images of the
dataset, so that the picture shows no patient's tissue. The model must have the classes other (0)
and gland (1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.contracts.models import ModelRef
from shared.datasets.samples import Sample, draw_crops, load_dataset, read_shard
from shared.diffusion.crops import Crop, CropRule, cropped_labels, move_crop, take_crop
from shared.diffusion.model_store import load_model
from shared.imaging.sheet import colorize, sheet
from shared.models import read_model
from shared.storage import open_store

UInt8 = NDArray[np.uint8]
MAPS = 6


def draw_glands(size: int, rng: np.random.Generator) -> UInt8:
    """Draw a label map of wavy discs that do not touch, uint8 (size, size)."""
    y, x = np.mgrid[:size, :size] / size
    labels = np.zeros((size, size), np.uint8)
    margin = np.zeros((size, size), bool)
    for _ in range(60):
        middle, radius = rng.uniform(0, 1, 2), rng.uniform(0.08, 0.26)
        phases, waves = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, 0.1, 4)
        angle = np.arctan2(y - middle[1], x - middle[0])
        wave = 1 + sum(waves[n] * np.cos((n + 1) * angle + phases[n]) for n in range(4))
        distance = np.hypot(x - middle[0], y - middle[1]) / wave
        if not (margin & (distance < radius + 0.03)).any():
            labels[distance < radius] = 1
            margin |= distance < radius + 0.03
    return labels


def appearances(samples: list[Sample], rows: int) -> list[Sample]:
    """Pick `rows` samples with different mean colours, by farthest-point sampling."""
    colours = np.stack([sample.image.mean((0, 1)) for sample in samples])
    chosen = [0]
    while len(chosen) < rows:
        apart = np.linalg.norm(colours[:, None] - colours[chosen], axis=2).min(axis=1)
        chosen.append(int(apart.argmax()))
    return [samples[number] for number in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name> or <name>/<version>")
    parser.add_argument("dataset", help="synthetic images, from whose first shard crops are cut")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    store = open_store(given.store)
    record = read_model(store, ModelRef.parse(given.model))
    sampler, size = load_model(store, record.ref, "cpu"), record.size
    rule = CropRule.of(record.recipe.denoiser, record.classes)
    rng = np.random.default_rng(given.seed)
    maps = [draw_glands(size, rng) for _ in range(MAPS)]
    samples = list(read_shard(store.get(load_dataset(store, given.dataset).shards[0])))
    rows = [[np.full((size, size, 3), 250, np.uint8)]]
    rows[0] += [colorize(labels, record.classes.colors) for labels in maps]
    for source in appearances(samples, given.rows):
        cut = [
            take_crop(source.image, source.labels, label, rule, rng, size)
            for label in cropped_labels(source.labels, rule)
        ]
        crops = [crop for crop in cut if crop is not None]
        moved: list[list[Crop]] = [
            [found for crop in crops if (found := move_crop(crop, labels, rng)) is not None]
            for labels in maps
        ]
        images = sampler.generate(np.stack(maps), moved, range(MAPS), record.recipe.sampling)
        rows.append([draw_crops(crops, size), *images])
    page = sheet(rows, ["label maps", *[""] * given.rows], ["crops", "synthetic images"])
    Image.fromarray(page).save(given.picture, quality=90)


if __name__ == "__main__":
    main()
