"""Draw the pictures of docs/fields.md, with the shipped student.

    python -m benchmarks.gallery TILES docs/images

TILES is a folder of pictures beside their masks, such as EBHI-Seg's: the crops, and the pictures
that are edited, are from there. The maps of fields are drawn.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.edits import BORDER, sampler_of
from benchmarks.fields import PRECISION, SIZE, Tile, crops_of, draw_layout, read_tiles
from heterotissue.first_picture import shipped_student
from shared.arrays import UInt8
from shared.computing import prepare
from shared.contracts.base import Classes
from shared.contracts.image import RESTAINING, STRENGTH
from shared.datasets.samples import draw_crops
from shared.diffusion.appearances import Appearance
from shared.diffusion.crops import Crop, CropRule
from shared.diffusion.editing import paint, redraw, restain
from shared.diffusion.field_decoder import make_field
from shared.diffusion.fields import FieldMap, FieldSampler
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.imaging.sheet import colorize, sheet
from shared.storage import DirectoryStore

FIELD = (448, 896)
"""Height and width of a field, pixels."""
PLACES = ((0.05, 0.2), (0.5, 0.8), (0.95, 0.2))
ROWS = 4


class Gallery:
    """Draws sheets of fields and of edits."""

    def __init__(self, tiles: Sequence[Tile], seed: int) -> None:
        self.pipeline: HeteroTissuePipeline
        self.classes: Classes
        self.rule: CropRule
        self.pipeline, self.classes, self.rule = shipped_student(DirectoryStore(tempfile.mkdtemp()))
        self.rng = np.random.default_rng(seed)
        known = [tile for tile in tiles if 0.25 < tile.labels.mean() < 0.75]
        self.tiles = [known[n] for n in self.rng.permutation(len(known)).tolist()]

    def fields(self) -> UInt8:
        """A map, its field in one appearance, and the same map in three that fade."""
        labels = draw_layout(*FIELD, self.rng)
        looks = [Appearance.of(self._crops(n), *place) for n, place in enumerate(PLACES)]
        one = Appearance.of(looks[0].crops.values())
        made = [self._field(labels, chosen) for chosen in ([one], looks)]
        rows = [[self._coloured(labels)], [made[0]], [made[1]]]
        return sheet(rows, ["label map", "one", "three"])

    def edits(self) -> UInt8:
        """Some pictures with tissue painted in, re-stained to other crops, and drawn again."""
        rows = []
        for number in range(ROWS):
            tile = self.tiles[number]
            own, others = self._crops(number), self._crops(number + ROWS)
            area, painted = self._lesion(tile)
            work = sampler_of(self.pipeline, tile._replace(labels=painted), own, number)
            marked = self._coloured(painted)
            outlines, _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(marked, outlines, -1, (20, 20, 20), 1)
            stained = sampler_of(self.pipeline, tile, others, number)
            varied = [sampler_of(self.pipeline, tile, own, seed) for seed in (1, 2)]
            rows.append(
                [
                    tile.image,
                    marked,
                    paint(work, tile.image, area > 0, BORDER),
                    draw_crops([_moved(crop) for crop in others], SIZE),
                    restain(
                        stained, tile.image, STRENGTH, RESTAINING, [crop.label for crop in others]
                    ),
                    *(redraw(work, tile.image, STRENGTH, 0.0) for work in varied),
                ]
            )  # fmt: skip
        names = ["picture", "area and its map", "painted", "other crops", "re-stained"]
        return sheet(rows, [""] * ROWS, [*names, "variation 1", "variation 2"])

    def _crops(self, number: int) -> list[Crop]:
        return crops_of(self.tiles[number], self.rule, self.rng)

    def _coloured(self, labels: UInt8) -> UInt8:
        return colorize(labels, self.classes.colors).copy()

    def _field(self, labels: UInt8, looks: Sequence[Appearance]) -> UInt8:
        return make_field(
            FieldSampler(
                self.pipeline, SIZE, self.pipeline.sampling, FieldMap.of(labels), looks, 0,
                PRECISION,
            )
        )  # fmt: skip

    def _lesion(self, tile: Tile) -> tuple[UInt8, UInt8]:
        """Return a disc, and the labels with a gland in it, within other tissue."""
        area = np.zeros((SIZE, SIZE), np.uint8)
        middle = self.rng.integers(44, SIZE - 44, 2).tolist()
        cv2.circle(area, middle, 36, 1, -1)
        gland = cv2.circle(np.zeros_like(area), middle, 24, 1, -1)
        return area, np.where(area > 0, gland, tile.labels).astype(np.uint8)


def _moved(crop: Crop) -> Crop:
    """Move a crop to the corner of its class."""
    corner = SIZE - len(crop.pixels) if crop.label else 0
    return replace(crop, x=corner, y=corner)


def main() -> None:
    """Draw the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    prepare(int(os.environ.get("OMP_NUM_THREADS", "2")))
    gallery = Gallery(read_tiles(given.tiles), given.seed)
    for name, picture in (("fields", gallery.fields()), ("edits", gallery.edits())):
        Image.fromarray(picture).save(given.folder / f"{name}.webp", quality=80)


if __name__ == "__main__":
    main()
