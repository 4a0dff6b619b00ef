"""Measure synthetic fields: seams, fidelity, staining, time. `field_memory.py` measures memory.

    python benchmarks/fields.py TILES --out benchmarks/results/fields.json
    python benchmarks/fields.py TILES --fields 0 --time 2048

TILES is a folder of pictures beside their masks (<name>.mask.png), such as EBHI-Seg's: crops and
the real images are from there. The model is the shipped student. Maps are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from PIL import Image

from heterotissue.first_picture import shipped_student
from services.evaluate.frechet import distance_of
from services.field.stage import strip_height
from shared.arrays import Float64, UInt8
from shared.computing import prepare
from shared.diffusion.appearances import Appearance
from shared.diffusion.crops import Crop, CropRule, move_crop, take_typical_crop
from shared.diffusion.field_decoder import PIECE, FieldDecoder, make_field, probe
from shared.diffusion.fields import FieldMap, FieldSampler, join
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.diffusion.windows import BATCH
from shared.encoders.loading import load_encoder
from shared.imaging.density import mean_density
from shared.storage import DirectoryStore

SIZE, MPP, PRECISION = 128, 0.875, "bf16"
ENCODER = "efficientnet-lite0"
CORNER = 256
"""Side of a field's corners whose staining is compared, pixels."""

TIMES = 3
"""Number of times that the time is measured, because one is up to a tenth off."""


class Apart(FieldSampler):
    """Windows that never overlap."""

    overlaps: ClassVar[tuple[float, ...]] = ()


class Wider(FieldSampler):
    """Windows that overlap by an eighth in all steps but the last, where it is a quarter."""

    overlaps: ClassVar[tuple[float, ...]] = (1 / 8, 1 / 8, 1 / 8, 1 / 4)


METHODS = {"apart": Apart, "shipped": FieldSampler, "wider": Wider}


class Tile(NamedTuple):
    """A real image with its label map, at the model's resolution, and its slide."""

    image: UInt8
    labels: UInt8
    slide: str


def read_tiles(folder: Path) -> list[Tile]:
    """Read all pictures below a folder that have a mask, at `SIZE` pixels."""
    tiles = []
    for path in sorted(folder.rglob("*.mask.png")):
        image = next(
            p for p in path.parent.glob(path.name.removesuffix("mask.png") + "*") if p != path
        )
        pixels = np.asarray(Image.open(image).convert("RGB"), np.uint8)
        labels = (np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8)
        slide = re.sub(r"-\d+-\d+$", "", image.stem)
        tiles.append(
            Tile(
                np.asarray(
                    cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8
                ),
                np.asarray(
                    cv2.resize(labels, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST), np.uint8
                ),
                slide,
            )
        )
    return tiles


def draw_layout(height: int, width: int, rng: np.random.Generator) -> UInt8:
    """Draw a label map of wavy glands that do not touch, uint8 (height, width)."""
    labels = np.zeros((height, width), np.uint8)
    taken = np.zeros((height, width), bool)
    for _ in range(40 * height * width // SIZE**2):
        radius = rng.uniform(0.08, 0.4) * SIZE
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        waves, phases = rng.uniform(0, 0.1, 4), rng.uniform(0, 2 * np.pi, 4)
        top, left = max(0, int(y - 2 * radius)), max(0, int(x - 2 * radius))
        part = np.s_[top : int(y + 2 * radius), left : int(x + 2 * radius)]
        for step in (4, 1):  # a coarse grid refuses most of them
            own = taken[part][::step, ::step]
            down = np.arange(own.shape[0])[:, None] * step + top - y
            right = np.arange(own.shape[1]) * step + left - x
            angle = np.arctan2(down, right)
            wave = 1 + sum(waves[n] * np.cos((n + 1) * angle + phases[n]) for n in range(4))
            distance = np.hypot(right, down) / wave
            if (own & (distance < radius + 4)).any():
                break
        else:
            labels[part][distance < radius] = 1
            own |= distance < radius + 4
    return labels


def crops_of(tile: Tile, rule: CropRule, rng: np.random.Generator) -> list[Crop]:
    """Cut a crop of each class out of a tile."""
    cut = (take_typical_crop(tile.image, tile.labels, label, rule, rng, SIZE) for label in (0, 1))
    return [crop for crop in cut if crop is not None]


class Seams(NamedTuple):
    """Gradient energy across lines where windows meet ÷ that between other latent pixels.

    Lines are those of the last two steps, which no later step hides: the borders of windows, and
    those between the latent pixels where two windows overlap.

    Attributes:
        mean: of all lines.
        worst: of the step, and the distance from the beginning of a window, that have the most.
    """

    mean: float
    worst: float


def find_seams(image: UInt8, sampler: FieldSampler) -> Seams:
    """Measure the seams of a field."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    across: dict[tuple[int, int], list[float]] = {}
    elsewhere: list[float] = []
    for axis, length in ((0, sampler.height), (1, sampler.width)):
        energy = (np.diff(grey, axis=axis) ** 2).mean(1 - axis)
        places: dict[int, list[tuple[int, int]]] = {cell: [] for cell in range(1, length)}
        for step in range(sampler.sampling.steps)[-2:]:
            starts = sampler.starts(step, axis, length)
            for before, start in pairwise(starts):
                for cell in range(start, before + sampler.window + 1):
                    places[cell].append((step, cell - start))
        for cell, found in places.items():
            value = float(energy[cell * sampler.factor - 1])
            for place in found:
                across.setdefault(place, []).append(value)
            if not found:
                elsewhere.append(value)
    # a window that was moved to the edge of the field overlaps more than the others
    overlap = max(set(map(len, across.values())), default=0) // 2
    usual = [values for values in across.values() if len(values) > overlap]
    return Seams(
        float(np.mean(np.concatenate(usual)) / np.mean(elsewhere)),
        float(max(map(np.mean, usual)) / np.mean(elsewhere)),
    )


def density(image: UInt8, labels: UInt8) -> Float64 | None:
    """Return the mean optical density of class 1, (3,); None where there is little of it."""
    area = labels == 1
    if area.mean() < 0.05:
        return None
    return mean_density(image, area)


def drift(densities: Sequence[Float64 | None]) -> float | None:
    """Return the mean distance between densities; None where there are less than two."""
    known = [each for each in densities if each is not None]
    pairs = [float(np.linalg.norm(a - b)) for a, b in combinations(known, 2)]
    return float(np.mean(pairs)) if pairs else None


def corners(image: UInt8) -> Iterator[UInt8]:
    """Yield the four corners of a field or of its label map."""
    side = min(CORNER, len(image) // 2)
    for y in (0, len(image) - side):
        for x in (0, image.shape[1] - side):
            yield image[y : y + side, x : x + side]


def measure(
    pipeline: HeteroTissuePipeline,
    rule: CropRule,
    tiles: Sequence[Tile],
    size: int,
    fields: int,
    windows: int,
    out: Path | None,
) -> dict[str, Any]:
    """Make fields by each method, and measure them beside single tiles of the same windows."""
    rng = np.random.default_rng(0)
    usable = [tile for tile in tiles if 0.2 < tile.labels.mean() < 0.8]
    chosen = [usable[n] for n in rng.choice(len(usable), fields, replace=False)]
    seams: dict[str, list[Seams]] = {name: [] for name in METHODS}
    cut: dict[str, list[UInt8]] = {name: [] for name in (*METHODS, "tiles")}
    drifts = []
    for number, tile in enumerate(chosen):
        labels, crops = draw_layout(size, size, rng), crops_of(tile, rule, rng)
        places = rng.integers(size - SIZE + 1, size=(windows, 2)).tolist()
        maps = np.stack([labels[y : y + SIZE, x : x + SIZE] for y, x in places])
        for name, method in METHODS.items():
            sampler = method(
                pipeline,
                SIZE,
                pipeline.sampling,
                FieldMap.of(labels),
                [Appearance.of(crops)],
                number,
                PRECISION,
            )
            image = make_field(sampler)
            seams[name].append(find_seams(image, sampler))
            cut[name] += [image[y : y + SIZE, x : x + SIZE] for y, x in places]
            if method is FieldSampler:
                drifts.append(
                    drift([density(*c) for c in zip(corners(image), corners(labels), strict=True)])
                )
            if out is not None:
                Image.fromarray(image).save(out / f"{name}-{number}.png")
        placed = [[m for c in crops if (m := move_crop(c, own, rng)) is not None] for own in maps]
        for first in range(0, windows, BATCH):
            batch = slice(first, first + BATCH)
            seeds = range(windows)[batch]
            cut["tiles"] += list(pipeline(maps[batch], placed[batch], seeds, precision=PRECISION))
    encoder = load_encoder(ENCODER, DirectoryStore(tempfile.mkdtemp()))
    real = encoder.encode(np.stack([tile.image for tile in tiles]))
    frechet = {
        name: distance_of(encoder.encode(np.stack(images)), real) for name, images in cut.items()
    }
    slides: dict[str, list[Tile]] = {}
    for tile in tiles:
        slides.setdefault(tile.slide, []).append(tile)
    within = [drift([density(t.image, t.labels) for t in own]) for own in slides.values()]
    real_drift = float(np.mean([each for each in within if each is not None]))
    field_drift = float(np.mean([each for each in drifts if each is not None]))
    return {
        "seam_ratio": float(np.mean([each.mean for each in seams["shipped"]])),
        "fd_ratio": frechet["shipped"] / frechet["tiles"],
        "stain_drift": field_drift / real_drift,
        "methods": {
            name: {
                "seam_ratio": float(np.mean([each.mean for each in seams[name]])),
                "worst_line": float(np.mean([each.worst for each in seams[name]])),
                "seams_of_each": [[round(value, 4) for value in each] for each in seams[name]],
                "fd_ratio": frechet[name] / frechet["tiles"],
            }
            for name in METHODS
        },
        "frechet": {"encoder": ENCODER, "n": len(cut["tiles"]), "real": len(tiles), **frechet},
        "real_drift": real_drift,
    }


def compare_time(
    pipeline: HeteroTissuePipeline, crops: Sequence[Crop], size: int
) -> dict[str, float]:
    """Make a field in strips as its job does, and by turns the same area in single tiles.

    So whatever else runs on the machine disturbs both alike. Times are those of the process.
    """
    rng = np.random.default_rng(2)
    labels = draw_layout(size, size, rng)
    sampler = FieldSampler(
        pipeline, SIZE, pipeline.sampling, FieldMap.of(labels), [Appearance.of(crops)], 0, PRECISION
    )
    grid = range(0, size - SIZE + 1, SIZE)
    maps = np.stack([labels[y : y + SIZE, x : x + SIZE] for y in grid for x in grid])
    spent = {"field": 0.0, "tiles": 0.0}
    made = 0

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        done = work(*arguments)
        spent[name] += time.process_time() - start
        return done

    def tiles(share: float) -> None:
        nonlocal made
        while made < share * len(maps):
            own = maps[made : made + BATCH]
            placed = [[m for c in crops if (m := move_crop(c, o, rng)) is not None] for o in own]
            pipeline(own, placed, range(len(own)), precision=PRECISION)
            made += len(own)

    spans = strips(sampler, strip_height(size))
    parts = (sampler.sampling.steps + 1) * len(spans)
    state = [sampler.noise(*span) for span in spans]
    decoder = timed("field", FieldDecoder, sampler, probe(sampler))
    for step in range(sampler.sampling.steps):
        whole = join(state)
        for number, span in enumerate(spans):
            own = sampler.span(step, *span)
            state[number] = timed("field", sampler.advance, step, whole, *own)
            timed("tiles", tiles, (step * len(spans) + number + 1) / parts)
    whole = join(state)
    for number, span in enumerate(spans):
        timed("field", decoder.decode, whole, *span)
        timed("tiles", tiles, (parts - len(spans) + number + 1) / parts)
    micro = {name: 1e6 * own / size**2 for name, own in spent.items()}
    return {
        "time_size": size,
        "time_per_pixel_ratio": micro["field"] / micro["tiles"],
        "field_us_per_pixel": micro["field"],
        "tiles_us_per_pixel": micro["tiles"],
    }


def strips(sampler: FieldSampler, height: int) -> list[tuple[int, int]]:
    """Cut a field into strips of a height in pixels."""
    tall = height // sampler.factor
    return [(top, min(top + tall, sampler.height)) for top in range(0, sampler.height, tall)]


def equal_strips(pipeline: HeteroTissuePipeline, rule: CropRule, tile: Tile) -> bool:
    """Say whether strips of 512 px give the bytes of the whole field, in another order too."""
    rng = np.random.default_rng(1)
    labels, crops = draw_layout(1280, 256, rng), crops_of(tile, rule, rng)
    sampler = FieldSampler(
        pipeline, SIZE, pipeline.sampling, FieldMap.of(labels), [Appearance.of(crops)], 1, PRECISION
    )
    spans = strips(sampler, PIECE)
    state = [sampler.noise(*span) for span in spans]
    for step in range(sampler.sampling.steps):
        whole, made = join(state), {}
        for number in reversed(range(len(spans))):
            span = sampler.span(step, *spans[number])
            made[number] = sampler.advance(step, whole.rows(*sampler.reach(step, *span)), *span)
        state = [made[number] for number in range(len(spans))]
    decoder = FieldDecoder(sampler, probe(sampler))
    whole = join(state)
    parts = [decoder.decode(whole.rows(*decoder.halo(*span)), *span) for span in spans]
    return bool(np.array_equal(np.concatenate(parts), make_field(sampler)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512, help="side of the fields, pixels")
    parser.add_argument("--fields", type=int, default=8)
    parser.add_argument("--windows", type=int, default=16, help="windows cut from each field")
    parser.add_argument("--pictures", type=Path, help="folder for the fields")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--time", type=int, help="side of a field whose time is measured, pixels")
    given = parser.parse_args(arguments)
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    prepare(threads)
    pipeline, _, rule = shipped_student(DirectoryStore(tempfile.mkdtemp()))
    tiles = read_tiles(given.folder)
    usable = next(tile for tile in tiles if 0.2 < tile.labels.mean() < 0.8)
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {threads} threads",
        "size": given.size,
        "fields": given.fields,
    }
    if given.fields:
        figures |= measure(
            pipeline, rule, tiles, given.size, given.fields, given.windows, given.pictures
        )
        print(json.dumps(figures, indent=1), flush=True)
    if given.time:
        crops = crops_of(usable, rule, np.random.default_rng(2))
        times = [compare_time(pipeline, crops, given.time) for _ in range(TIMES)]
        figures |= {name: median(own[name] for own in times) for name in times[0]}
        figures["time_per_pixel_ratios"] = [own["time_per_pixel_ratio"] for own in times]
        print(json.dumps(figures, indent=1), flush=True)
    figures["equal_bytes"] = equal_strips(pipeline, rule, usable)
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
