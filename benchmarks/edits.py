"""Measure edits: does the border of painting show, and what does re-staining change.

    python -m benchmarks.edits TILES TRAIN --out benchmarks/results/edits.json

TILES and TRAIN are folders of pictures beside their masks, such as EBHI-Seg's. The model is the
shipped student. A segmenter learns from TRAIN, and tells whether re-stained pictures still show
their labels.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.fields import ENCODER, MPP, PRECISION, SIZE, Tile, crops_of, read_tiles
from benchmarks.segmenters import STEPS, TilePairs, scored, trained
from heterotissue.first_picture import shipped_student
from shared.arrays import Float64, UInt8
from shared.computing import prepare
from shared.contracts.base import Classes
from shared.contracts.image import RESTAINING, STRENGTH
from shared.diffusion.appearances import Appearance
from shared.diffusion.crops import Crop, CropRule
from shared.diffusion.editing import paint, restain
from shared.diffusion.fields import FieldMap, FieldSampler
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.imaging.density import mean_density
from shared.storage import DirectoryStore

BORDER = 8
NEAR = 16
"""Distance from the painted border up to which gradients are compared with those across it."""


def sampler_of(
    pipeline: HeteroTissuePipeline, tile: Tile, crops: Sequence[Crop], seed: int
) -> FieldSampler:
    """Return a sampler for the labels of a tile."""
    labels = FieldMap.of(tile.labels)
    looks = [Appearance.of(crops)]
    return FieldSampler(pipeline, SIZE, pipeline.sampling, labels, looks, seed, PRECISION)


def border_energy(image: UInt8, area: UInt8) -> tuple[float, float]:
    """Return the gradient energy across the painted border, and nearby on both sides.

    The border is the edge of the area, and that of the pixels around it that fade.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    inside = cv2.distanceTransform(area, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - area, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    faded = outside <= BORDER
    across: list[Float64] = []
    nearby: list[Float64] = []
    for axis in (0, 1):
        energy = np.diff(grey, axis=axis) ** 2
        edge = (np.diff(area, axis=axis) != 0) | (np.diff(faded, axis=axis) != 0)
        close = np.maximum(inside, outside) < BORDER + NEAR
        first = close[:-1] if axis == 0 else close[:, :-1]
        across.append(energy[edge])
        nearby.append(energy[first & ~edge])
    return float(np.concatenate(across).mean()), float(np.concatenate(nearby).mean())


def measure_painting(
    pipeline: HeteroTissuePipeline, rule: CropRule, tiles: Sequence[Tile], out: Path | None
) -> dict[str, Any]:
    """Paint a disc into each tile, by the tile's own labels and crops."""
    rng = np.random.default_rng(0)
    painted, real = [], []
    for number, tile in enumerate(tiles):
        area = np.zeros((SIZE, SIZE), np.uint8)
        middle = rng.integers(44, SIZE - 44, 2).tolist()
        cv2.circle(area, middle, int(rng.integers(20, 32)), 1, -1)
        crops = crops_of(tile, rule, rng)
        sampler = sampler_of(pipeline, tile, crops, number)
        image = paint(sampler, tile.image, area > 0, BORDER)
        painted.append(border_energy(image, area))
        real.append(border_energy(tile.image, area))
        if out is not None:
            both = np.concatenate([tile.image, image], 1)
            Image.fromarray(both).save(out / f"painted-{number:03d}.png")
    ratios = {
        name: float(np.sum([a for a, _ in own]) / np.sum([b for _, b in own]))
        for name, own in (("painted", painted), ("real", real))
    }
    return {"edit_seam_ratio": ratios["painted"], "seam_ratio_of_the_real": ratios["real"]}


def stain_error(image: UInt8, labels: UInt8, crops: Sequence[Crop]) -> float:
    """Return the mean distance of the classes' optical densities from those of their crops."""
    apart = [
        np.linalg.norm(mean_density(image, labels == crop.label) - mean_density(crop.pixels))
        for crop in crops
    ]
    return float(np.mean(apart))


def measure_staining(
    pipeline: HeteroTissuePipeline,
    rule: CropRule,
    tiles: Sequence[Tile],
    train: Sequence[Tile],
    classes: Classes,
    out: Path | None,
) -> dict[str, Any]:
    """Re-stain tiles to crops of another slide; score stain and labels before and after."""
    rng = np.random.default_rng(1)
    segmenter = trained(TilePairs(train), classes, SIZE, 0)
    before, after, drawn = [], [], []
    for number, tile in enumerate(tiles):
        others = [other for other in tiles if other.slide != tile.slide]
        crops = crops_of(others[rng.integers(len(others))], rule, rng)
        work = sampler_of(pipeline, tile, crops, number)
        stained = [crop.label for crop in crops]
        image = restain(work, tile.image, STRENGTH, RESTAINING, stained)
        before.append(stain_error(tile.image, tile.labels, crops))
        after.append(stain_error(image, tile.labels, crops))
        drawn.append(tile._replace(image=image))
        if out is not None:
            both = np.concatenate([tile.image, image], 1)
            Image.fromarray(both).save(out / f"restained-{number:03d}.png")
    iou = [scored(segmenter, TilePairs(own), classes, SIZE).mean_iou for own in (tiles, drawn)]
    return {
        "strength": STRENGTH,
        "staining": RESTAINING,
        "stain_error_ratio": float(np.mean(before) / np.mean(after)),
        "stain_error": {"before": float(np.mean(before)), "after": float(np.mean(after))},
        "iou": {"before": iou[0], "after": iou[1]},
        "iou_kept": float(iou[1] or 0) / float(iou[0] or 1),
        "segmenter": {"encoder": ENCODER, "steps": STEPS, "tiles": len(train)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("--tiles", type=int, default=120)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    prepare(int(os.environ.get("OMP_NUM_THREADS", "2")))
    pipeline, classes, rule = shipped_student(DirectoryStore(tempfile.mkdtemp()))
    known = [tile for tile in read_tiles(given.folder) if 0.2 < tile.labels.mean() < 0.8]
    rng = np.random.default_rng(0)
    tiles = [known[n] for n in rng.permutation(len(known))[: given.tiles].tolist()]
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "tiles": len(tiles),
        "mpp": MPP,
        "border": BORDER,
    }
    figures |= measure_painting(pipeline, rule, tiles, given.pictures)
    print(json.dumps(figures, indent=1), flush=True)
    figures |= measure_staining(
        pipeline, rule, tiles, read_tiles(given.train), classes, given.pictures,
    )  # fmt: skip
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
