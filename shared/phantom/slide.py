"""Phantom slides: H&E-like tissue with exact ground truth, from a seed.

Geometry is decided on a label raster of 2 µm per pixel (4 slide pixels); the image
is composited from seamless textures along it. So the label map, the polygons and
the pixels agree by construction.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import rasterio.features
import tifffile
from numpy.typing import NDArray

from shared.arrays import Float32, UInt8
from shared.contracts.base import Classes
from shared.errors import InputError
from shared.phantom import texture
from shared.phantom.texture import MPP, SIDE, Nuclei, Texture, draw_nuclei

PHANTOM_CLASSES = Classes.of("stroma", "tumor", "lymphocytes", "gland", "fat", "necrosis")
STROMA, TUMOR, LYMPHOCYTES, GLAND, FAT, NECROSIS = range(1, 7)

SCALE = 4
"""Slide pixels per label pixel."""

LEVELS = 200
"""Steps per unit of stain concentration in the palette."""

BLOCK = 1024
TILE = 512
FIELD = 8
"""Label pixels per sample of the layout's smooth fields."""

PAD = 4
"""Samples of the fields beyond the slide's edges, for the interpolation."""

GLANDS = 10
GLAND_SIDE = 76
"""Label pixels of a gland's stamp."""

GLAND_PITCH = 72
"""Label pixels between the places where glands may stand."""


@dataclass(frozen=True)
class PhantomFiles:
    """What `write_phantom` wrote."""

    slide: Path
    mask: Path
    geojson: Path
    xml: Path


@dataclass(frozen=True)
class GlandStamp:
    """A gland drawn once: its label mask, and stain concentrations with their weight."""

    mask: NDArray[np.bool_]
    haematoxylin: Float32
    eosin: Float32


def draw_gland(rng: np.random.Generator, cytoplasm: Texture) -> GlandStamp:
    """Draw a gland: a pale lumen in a ring of epithelium with nuclei at its base."""
    side = GLAND_SIDE * SCALE
    span = np.arange(side, dtype=np.float32) - side / 2
    theta = np.arctan2(span[:, None], span[None])
    stretch, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    c, s = np.cos(turn), np.sin(turn)
    u, v = span[None] * c + span[:, None] * s, (-span[None] * s + span[:, None] * c) / stretch
    phases = rng.uniform(0, 2 * np.pi, 3)
    amplitudes = rng.uniform(0.02, 0.09, 3)
    waves = zip(amplitudes, phases, strict=True)
    wobble = sum(a * np.cos(k * theta + p) for k, (a, p) in enumerate(waves, 2))
    outer = side * rng.uniform(0.24, 0.40)
    coarse = (np.hypot(u, v) < outer * (1 + wobble)).astype(np.uint8)
    mask = coarse.reshape(GLAND_SIDE, SCALE, GLAND_SIDE, SCALE).mean((1, 3)) > 0.5
    inside = cv2.resize(mask.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_LINEAR)
    depth = cv2.distanceTransform((inside > 127).astype(np.uint8), cv2.DIST_L2, 5) * MPP
    thickness = rng.uniform(12, 18)
    h = cytoplasm.haematoxylin[:side, :side].copy()
    e = cytoplasm.eosin[:side, :side].copy()
    e += 0.12 * np.exp(-((depth - thickness) ** 2) / 6)
    lumen = np.clip((depth - thickness) / 2.5, 0, 1)
    secretion = 0.10 * np.clip(texture.torus_noise(rng, 14)[:side, :side], 0, 2)
    e = e * (1 - lumen) + lumen * secretion
    h = h * (1 - lumen) + lumen * 0.015
    ring = np.abs(depth - rng.uniform(5.0, 7.0)) < 1.0
    ys, xs = np.nonzero(ring)
    order = rng.permutation(len(ys))
    taken: list[tuple[float, float]] = []
    for i in order:
        if all((xs[i] - x) ** 2 + (ys[i] - y) ** 2 > (5.6 / MPP) ** 2 for x, y in taken):
            taken.append((float(xs[i]), float(ys[i])))
    centres = np.array(taken)
    gy, gx = np.gradient(cv2.GaussianBlur(depth, (0, 0), 4))
    iy, ix = centres[:, 1].astype(int), centres[:, 0].astype(int)
    angles = np.arctan2(gy[iy, ix], gx[iy, ix]) + rng.normal(0, 0.2, len(centres))
    full_h, full_e = np.zeros((SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), np.float32)
    kind = Nuclei(10.5, 0.12, 0.52, 0.85, rim=0.3, chromatin=0.25)
    draw_nuclei(full_h, centres, angles, kind, rng, full_e)
    nuclei = full_h[:side, :side]
    return GlandStamp(
        mask,
        np.where(nuclei > 0.05, np.maximum(nuclei, h), h).astype(np.float32),
        (e * full_e[:side, :side]).astype(np.float32),
    )


class Slide:
    """A phantom slide that renders any block of itself.

    Args:
        width, height: level-0 pixels, multiples of 4.
        seed: decides everything.
    """

    def __init__(self, width: int, height: int, seed: int) -> None:
        if width % SCALE or height % SCALE or min(width, height) < BLOCK // 2:
            raise InputError(
                f"a phantom of {width}×{height} px cannot be made: both sides must be multiples "
                f"of {SCALE} and at least {BLOCK // 2}"
            )
        self.width, self.height, self.seed = width, height, seed
        rng = np.random.default_rng([seed, 1])
        self.palette = _palette(rng)
        self.columns, self.rows = width // SCALE, height // SCALE
        self._lay_out(rng)
        self._modulation = _enlarge(1 + 0.10 * texture.torus_noise(rng, 90), 2)
        self._edge = texture.torus_noise(rng, 4)
        self._choice = np.clip(_enlarge(texture.torus_noise(rng, 45), 3) * 3 + 0.5, 0, 1)
        self._grain = rng.normal(0, 2.2, (SIDE, SIDE)).round().astype(np.int16)

    @property
    def banks(self) -> Banks:
        """The slide's textures, drawn when they are first needed."""
        with _DRAWING:
            return _banks(self.seed)

    def _field(self, rng: np.random.Generator, micrometres: float) -> Float32:
        """Smooth noise over the slide and PAD beyond, one sample per FIELD label pixels."""
        shape = self._grid()[0].shape
        sigma = micrometres / (MPP * SCALE * FIELD)
        margin = int(4 * sigma)
        noise = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin))
        smooth = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), sigma)
        inner = smooth[margin : margin + shape[0], margin : margin + shape[1]]
        return np.asarray(inner * (2 * np.sqrt(np.pi) * sigma), np.float32)

    def _grid(self) -> tuple[Float32, Float32]:
        """Where the samples of the smooth fields lie, in units of FIELD label pixels."""
        rows, columns = -(-self.rows // FIELD) + PAD, -(-self.columns // FIELD) + PAD
        y, x = np.mgrid[-PAD:rows, -PAD:columns].astype(np.float32)
        return y, x

    def _lay_out(self, rng: np.random.Generator) -> None:
        """Decide where which tissue lies, as smooth scores on the coarse grid."""
        y, x = self._grid()
        down, across = y * FIELD / self.rows * 2 - 1, x * FIELD / self.columns * 2 - 1
        rim = 1 - (np.abs(across) ** 3 + np.abs(down) ** 3) ** (1 / 3)
        outline = 9 * rim + 0.5 * self._field(rng, 220) - 1.7
        self.tissue = _single(outline)
        nests = self._field(rng, 65) + 0.7 * self._field(rng, 320)
        self.tumor = _single(nests - rng.uniform(0.15, 0.55))
        self.necrosis = _single(self._field(rng, 130) + 0.45 * self.tumor - 1.35)
        self.lymphocytes = _single(self._field(rng, 55) - rng.uniform(1.05, 1.35))
        self.fat = _single(self._field(rng, 190) - rng.uniform(0.8, 1.1))
        zone = self._field(rng, 300)
        self.glands: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        for row in range(self.rows // GLAND_PITCH):
            for column in range(self.columns // GLAND_PITCH):
                dy, dx = rng.integers(-11, 12, 2)
                kind, symmetry, lot = rng.integers(GLANDS), rng.integers(8), rng.random()
                top, left = row * GLAND_PITCH + dy, column * GLAND_PITCH + dx
                if not (
                    0 <= top <= self.rows - GLAND_SIDE and 0 <= left <= self.columns - GLAND_SIDE
                ):
                    continue
                middle = GLAND_SIDE // 2
                at = ((top + middle) // FIELD + PAD, (left + middle) // FIELD + PAD)
                near = np.s_[max(0, at[0] - 3) : at[0] + 4, max(0, at[1] - 3) : at[1] + 4]
                free = self.tumor[near].max() < 0.1 and self.fat[near].max() < 0
                if zone[at] > -0.4 and free and self.tissue[near].min() > 0.5 and lot < 0.9:
                    self.glands[row, column] = (int(top), int(left), int(kind), int(symmetry))

    def _near_glands(
        self, top: int, left: int, rows: int, columns: int
    ) -> Iterator[tuple[int, int, GlandStamp, int]]:
        for row in range(top // GLAND_PITCH - 2, (top + rows) // GLAND_PITCH + 2):
            for column in range(left // GLAND_PITCH - 2, (left + columns) // GLAND_PITCH + 2):
                if (row, column) in self.glands:
                    y, x, kind, symmetry = self.glands[row, column]
                    yield y, x, self.banks.glands[kind], symmetry

    def labels(self, top: int, left: int, rows: int, columns: int) -> UInt8:
        """Return the label raster of a window: uint8 (rows, columns), label pixels."""
        y, x = np.mgrid[top : top + rows, left : left + columns].astype(np.float32)
        wobble = self._edge[y.astype(int) % SIDE, x.astype(int) % SIDE]
        fx, fy = x / FIELD + PAD, y / FIELD + PAD

        def score(field: Float32, rough: float) -> Float32:
            smooth = cv2.remap(field, fx, fy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            return np.asarray(smooth + rough * wobble, np.float32)

        out = np.full((rows, columns), STROMA, np.uint8)
        out[score(self.fat, 0.02) > 0] = FAT
        out[score(self.lymphocytes, 0.10) > 0] = LYMPHOCYTES
        out[score(self.tumor, 0.07) > 0] = TUMOR
        out[(score(self.necrosis, 0.06) > 0) & (out == TUMOR)] = NECROSIS
        for gy, gx, stamp, symmetry in self._near_glands(top, left, rows, columns):
            mask = _turn(stamp.mask, symmetry)
            window, part = _overlap(gy - top, gx - left, GLAND_SIDE, rows, columns)
            out[window][mask[part]] = GLAND
        out[score(self.tissue, 0.05) <= 0] = 0
        return out

    def render(self, top: int, left: int, rows: int, columns: int) -> UInt8:
        """Render a window in label pixels: uint8 RGB (rows · 4, columns · 4, 3)."""
        margin = 2
        labels = self.labels(top - margin, left - margin, rows + 2 * margin, columns + 2 * margin)
        height, width = rows * SCALE, columns * SCALE
        window = (top * SCALE, left * SCALE, height, width)
        choose = wrapped(self._choice, *window)
        h, e = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
        total = np.zeros((height, width), np.float32)
        big = ((columns + 2 * margin) * SCALE, (rows + 2 * margin) * SCALE)
        cut = np.s_[
            margin * SCALE : margin * SCALE + height, margin * SCALE : margin * SCALE + width
        ]
        for index in np.unique(labels):
            mask = cv2.GaussianBlur((labels == index).astype(np.float32), (3, 3), 0)
            weight = cv2.resize(mask, big, interpolation=cv2.INTER_LINEAR)[cut]
            ragged = wrapped(self._edge, top * SCALE + 149 * int(index), *window[1:])
            weight = (weight * (1 + 0.25 * np.clip(ragged, -2, 2))) ** 3
            th, te = self._tissue(int(index), window, choose)
            h += weight * th
            e += weight * te
            total += weight
        h /= total
        e /= total
        if (labels == GLAND).any():
            soft = cv2.resize(
                (labels == GLAND).astype(np.float32), big, interpolation=cv2.INTER_LINEAR
            )[cut]
            soft = np.clip(soft * 2 - 0.5, 0, 1)
            for gy, gx, stamp, symmetry in self._near_glands(top, left, rows, columns):
                side = GLAND_SIDE * SCALE
                area, part = _overlap((gy - top) * SCALE, (gx - left) * SCALE, side, height, width)
                mask = cv2.resize(_turn(stamp.mask, symmetry).astype(np.float32), (side, side))
                w = np.clip(mask[part] * 2 - 0.5, 0, 1) * soft[area]
                h[area] += w * (_turn(stamp.haematoxylin, symmetry)[part] - h[area])
                e[area] += w * (_turn(stamp.eosin, symmetry)[part] - e[area])
        slow = wrapped(self._modulation, *window)
        hq = np.clip(h * slow * LEVELS, 0, 2.55 * LEVELS).astype(np.uint16)
        eq = np.clip(e * slow * LEVELS, 0, 2.55 * LEVELS).astype(np.uint16)
        rgb = self.palette[hq, eq].astype(np.int16) + wrapped(self._grain, *window)[..., None]
        return np.asarray(rgb.clip(0, 255), np.uint8)

    def _tissue(
        self, index: int, window: tuple[int, int, int, int], choose: Float32
    ) -> tuple[Float32, Float32]:
        """Stain concentrations of one class: two textures that take turns, so none repeats."""
        top, left, height, width = window
        if index == 0:
            return np.zeros((height, width), np.float32), np.full(
                (height, width), 0.012, np.float32
            )
        first, second = self.banks.tissue[index]
        other = (top + 331, left + 577, height, width)
        h = wrapped(second.haematoxylin, *other)
        e = wrapped(second.eosin, *other)
        h = h + choose * (wrapped(first.haematoxylin, *window) - h)
        e = e + choose * (wrapped(first.eosin, *window) - e)
        return h, e


@dataclass(frozen=True)
class Banks:
    """A slide's textures: two of each class, and its gland stamps."""

    tissue: dict[int, tuple[Texture, Texture]]
    glands: list[GlandStamp]


_DRAWING = threading.Lock()  # or the threads that render a slide would all draw them


@lru_cache(maxsize=1)
def _banks(seed: int) -> Banks:
    rng = np.random.default_rng([seed, 2])
    makers: dict[int, Callable[[np.random.Generator], Texture]] = {
        STROMA: texture.stroma,
        TUMOR: texture.tumor,
        LYMPHOCYTES: texture.lymphocytes,
        GLAND: texture.cytoplasm,
        FAT: texture.fat,
        NECROSIS: texture.necrosis,
    }
    tissue = {i: (_blurred(make(rng)), _blurred(make(rng))) for i, make in makers.items()}
    across = tissue[STROMA][1]  # so that fibre bundles interweave
    tissue[STROMA] = (tissue[STROMA][0], Texture(across.haematoxylin.T, across.eosin.T))
    return Banks(tissue, [draw_gland(rng, tissue[GLAND][0]) for _ in range(GLANDS)])


def _blurred(drawn: Texture) -> Texture:
    """What the optics leave of a texture."""
    pad = 8
    parts = [
        cv2.GaussianBlur(np.pad(part, pad, mode="wrap"), (0, 0), 0.7)[pad:-pad, pad:-pad]
        for part in (drawn.haematoxylin, drawn.eosin)
    ]
    return Texture(*(np.ascontiguousarray(part, np.float32) for part in parts))


def _palette(rng: np.random.Generator) -> UInt8:
    """RGB of every pair of concentrations (1/LEVELS): uint8 (512, 512, 3), by Beer-Lambert.

    Stain vectors after Ruifrok and Johnston 2001, each slide a little different.
    """
    haematoxylin = np.array([0.65, 0.73, 0.33]) + rng.normal(0, [0.05, 0.035, 0.05])
    eosin = np.array([0.20, 0.90, 0.44]) + rng.normal(0, [0.05, 0.04, 0.08])
    eosin = eosin.clip(0.02)
    strength_h, strength_e = rng.uniform(0.80, 1.25), rng.uniform(0.32, 0.62)
    glass = 246 + rng.normal(0, 2.0, 3)
    levels = np.arange(512)[:, None] / LEVELS
    density = (strength_h * levels * haematoxylin)[:, None] + (strength_e * levels * eosin)[None]
    return np.asarray((glass * 10**-density).round().clip(0, 255), np.uint8)


def wrapped(array: NDArray[Any], top: int, left: int, rows: int, columns: int) -> NDArray[Any]:
    """Cut a window, no larger than the array, out of a seamless array."""
    height, width = array.shape
    top, left = top % height, left % width
    part = array[top : top + rows]
    if top + rows > height:
        part = np.concatenate((part, array[: top + rows - height]))
    if left + columns > width:
        return np.concatenate((part[:, left:], part[:, : left + columns - width]), 1)
    return part[:, left : left + columns]


def _single(array: NDArray[Any]) -> Float32:
    return np.asarray(array, np.float32)


def _enlarge(array: Float32, times: int) -> Float32:
    padded = np.pad(array, 2, mode="wrap")
    large = cv2.resize(padded, None, fx=times, fy=times, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large[2 * times : -2 * times, 2 * times : -2 * times], np.float32)


def _turn(array: NDArray[Any], symmetry: int) -> NDArray[Any]:
    turned = np.rot90(array, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def _overlap(top: int, left: int, side: int, rows: int, columns: int) -> tuple[Any, Any]:
    """Where a square at (top, left) lies in a window, and which part of the square that is."""
    y0, y1 = max(0, top), min(rows, top + side)
    x0, x1 = max(0, left), min(columns, left + side)
    y1, x1 = max(y0, y1), max(x0, x1)
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


def write_phantom(
    folder: Path,
    name: str,
    width: int,
    height: int,
    seed: int,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomFiles:
    """Write a phantom slide and its ground truth; the same arguments give the same bytes.

    Args:
        folder: where `<name>.tiff`, `<name>_mask.tiff`, `<name>.geojson`, `<name>.xml` go.
        width, height: level-0 pixels at 0.5 µm, multiples of 4.
        seed: decides tissue and stain.
        threads: blocks rendered at a time.
        progress: called with (rows of blocks done, all).
    """
    slide = Slide(width, height, seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = PhantomFiles(
        folder / f"{name}.tiff",
        folder / f"{name}_mask.tiff",
        folder / f"{name}.geojson",
        folder / f"{name}.xml",
    )
    step = BLOCK // SCALE
    labels = np.zeros((slide.rows, slide.columns), np.uint8)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".phantom-") as scratch,
        ThreadPoolExecutor(threads) as pool,
    ):
        small = np.memmap(
            Path(scratch) / "level", np.uint8, "w+", shape=(slide.rows, slide.columns, 3)
        )

        def block(top: int, left: int) -> UInt8:
            rows, columns = min(step, slide.rows - top), min(step, slide.columns - left)
            labels[top : top + rows, left : left + columns] = slide.labels(top, left, rows, columns)
            image = slide.render(top, left, rows, columns)
            small[top : top + rows, left : left + columns] = cv2.resize(
                image, (columns, rows), interpolation=cv2.INTER_AREA
            )
            return image

        def tiles() -> Iterator[UInt8]:
            tops = range(0, slide.rows, step)
            for number, top in enumerate(tops):
                made = pool.map(
                    lambda left, top=top: block(top, left), range(0, slide.columns, step)
                )
                band = np.concatenate(list(made), 1)
                for y in range(0, band.shape[0], TILE):
                    for x in range(0, band.shape[1], TILE):
                        yield _whole_tile(band[y : y + TILE, x : x + TILE])
                if progress is not None:
                    progress(number + 1, len(tops))

        options: dict[str, Any] = {
            "tile": (TILE, TILE),
            "photometric": "rgb",
            "compression": "jpeg",
            "compressionargs": {"level": 92},
            "resolutionunit": "CENTIMETER",
            "metadata": None,
        }
        large = width * height > 2**30
        with tifffile.TiffWriter(files.slide, bigtiff=large) as tiff:
            tiff.write(
                tiles(), shape=(height, width, 3), dtype=np.uint8,
                resolution=(1e4 / MPP, 1e4 / MPP), description=f"phantom seed={seed}", **options,
            )  # fmt: skip
            level, factor = np.asarray(small), SCALE
            while True:
                per_cm = 1e4 / (MPP * factor)
                tiff.write(level, resolution=(per_cm, per_cm), subfiletype=1, **options)
                if max(level.shape[:2]) <= 2 * TILE:
                    break
                size = (max(1, level.shape[1] // 4), max(1, level.shape[0] // 4))
                level, factor = cv2.resize(level, size, interpolation=cv2.INTER_AREA), factor * 4
    _write_mask(files.mask, labels)
    _write_outlines(files, labels)
    return files


def _whole_tile(tile: UInt8) -> UInt8:
    missing = (TILE - tile.shape[0], TILE - tile.shape[1])
    if not any(missing):
        return tile
    return np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _write_mask(path: Path, labels: UInt8) -> None:
    per_cm = 1e4 / (MPP * SCALE)
    tifffile.imwrite(
        path, labels, tile=(TILE, TILE), compression="zlib", photometric="minisblack",
        resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", metadata=None,
        bigtiff=labels.size > 2**31,
    )  # fmt: skip


def _write_outlines(files: PhantomFiles, labels: UInt8) -> None:
    """Write the exact outlines of the label raster as GeoJSON, and as ASAP XML.

    ASAP polygons have no holes, so they are ordered by area, large to small: painted
    in this order, what lies in a hole covers it.
    """
    transform = rasterio.Affine.scale(SCALE)
    found = [
        (int(value), shape["coordinates"])
        for shape, value in rasterio.features.shapes(labels, connectivity=4, transform=transform)
    ]
    names, colors = PHANTOM_CLASSES.names, PHANTOM_CLASSES.colors
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": names[value], "color": colors[value]},
            },
        }
        for value, rings in found
        if value
    ]
    files.geojson.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    ordered = sorted(found, key=lambda item: -_area(item[1][0]))
    for number, (value, rings) in enumerate(ordered):
        color = "#{:02X}{:02X}{:02X}".format(*colors[value])
        item = ET.SubElement(
            annotations, "Annotation", Name=f"Annotation {number}", Type="Polygon",
            PartOfGroup=names[value], Color=color,
        )  # fmt: skip
        coordinates = ET.SubElement(item, "Coordinates")
        for order, (x, y) in enumerate(rings[0][:-1]):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:g}", Y=f"{y:g}")
    groups = ET.SubElement(root, "AnnotationGroups")
    for name, color_rgb in zip(names, colors, strict=True):
        color = "#{:02X}{:02X}{:02X}".format(*color_rgb)
        ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=color)
    ET.ElementTree(root).write(files.xml, encoding="utf-8", xml_declaration=True)


def _area(ring: list[tuple[float, float]]) -> float:
    points = np.asarray(ring)
    x, y = points[:, 0], points[:, 1]
    return float(abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)
