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
from PIL import Image

from heterotissue.first_picture import MAPS, cut_crops, draw_glands
from shared.datasets.samples import Sample, draw_crops, load_dataset, read_shard
from shared.diffusion.crops import CropRule
from shared.diffusion.model_store import load_model
from shared.imaging.sheet import colorize, sheet
from shared.models import find_version, read_model
from shared.storage import open_store


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
    record = read_model(store, find_version(store, given.model))
    sampler, size = load_model(store, record.ref, "cpu"), record.size
    rule = CropRule.of(record.recipe.denoiser, record.classes)
    rng = np.random.default_rng(given.seed)
    maps = [draw_glands(size, rng) for _ in range(MAPS)]
    samples = list(read_shard(store.get(load_dataset(store, given.dataset).shards[0])))
    rows = [[np.full((size, size, 3), 250, np.uint8)]]
    rows[0] += [colorize(labels, record.classes.colors) for labels in maps]
    for source in appearances(samples, given.rows):
        crops, moved = cut_crops(source.image, source.labels, maps, rule, rng)
        images = sampler.generate(np.stack(maps), moved, range(MAPS), record.recipe.sampling)
        rows.append([draw_crops(crops, size), *images])
    page = sheet(rows, ["label maps", *[""] * given.rows], ["crops", "synthetic images"])
    Image.fromarray(page).save(given.picture, quality=90)


if __name__ == "__main__":
    main()
