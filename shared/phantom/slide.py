"""Phantom slides, of which any window can be rendered from the slide's seed.

A label raster of 2 µm per pixel (4 slide pixels) decides the geometry, and the image is
composed of seamless textures along this raster. So the label map, the polygons and the
pixels agree by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float32, UInt8
from shared.errors import InputError
from shared.phantom import texture
from shared.phantom.banks import (
    FAT,
    GLAND,
    GLANDS,
    LEVELS,
    LYMPHOCYTES,
    NECROSIS,
    STROMA,
    TUMOR,
    Banks,
    stain_palette,
    texture_banks,
)
from shared.phantom.glands import GLAND_SIDE, SCALE, GlandStamp
from shared.phantom.texture import MPP, SIDE

BLOCK = 1024
"""Side of the blocks that are rendered at a time, slide pixels."""

FIELD = 8
"""Label pixels per sample of the layout's smooth fields."""

PAD = 4
"""Samples of the fields beyond the slide's edges, for the interpolation."""

GLAND_PITCH = 72
"""Label pixels between the places where glands may stand."""


class PhantomSlide:
    """A phantom slide.

    Args:
        width, height: level-0 pixels, multiples of 4.
        seed: seed of the tissue and the staining.
        textures: seed of the textures, which take most of a slide's time; slides of one value
            share them. None: those of `seed`.

    Raises:
        InputError: a side is not a multiple of 4, or below 512.
    """

    def __init__(self, width: int, height: int, seed: int, textures: int | None = None) -> None:
        if width % SCALE or height % SCALE or min(width, height) < BLOCK // 2:
            raise InputError(
                f"a phantom of {width}×{height} px cannot be made: both sides must be multiples "
                f"of {SCALE} and at least {BLOCK // 2}"
            )
        self.width, self.height = width, height
        self.textures = seed if textures is None else textures
        rng = np.random.default_rng([seed, 1])
        self.palette = stain_palette(rng)
        self.columns, self.rows = width // SCALE, height // SCALE
        self._lay_out(rng)
        self._modulation = _enlarge(1 + 0.10 * texture.torus_noise(rng, 90), 2)
        self._edge = texture.torus_noise(rng, 4)
        self._choice = np.clip(_enlarge(texture.torus_noise(rng, 45), 3) * 3 + 0.5, 0, 1)
        self._grain = rng.normal(0, 2.2, (SIDE, SIDE)).round().astype(np.int16)

    @property
    def banks(self) -> Banks:
        """The slide's textures, drawn when they are first needed."""
        return texture_banks(self.textures)

    def _field(self, rng: np.random.Generator, micrometres: float) -> Float32:
        """Draw noise on the grid of `_grid`, smoothed by a Gaussian of sigma `micrometres`."""
        shape = self._grid()[0].shape
        sigma = micrometres / (MPP * SCALE * FIELD)
        margin = int(4 * sigma)
        noise = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin))
        smooth = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), sigma)
        inner = smooth[margin : margin + shape[0], margin : margin + shape[1]]
        return np.asarray(inner * (2 * np.sqrt(np.pi) * sigma), np.float32)

    def _grid(self) -> tuple[Float32, Float32]:
        """Return the positions (y, x) of the fields' samples, in units of FIELD label pixels."""
        rows, columns = -(-self.rows // FIELD) + PAD, -(-self.columns // FIELD) + PAD
        y, x = np.mgrid[-PAD:rows, -PAD:columns].astype(np.float32)
        return y, x

    def _lay_out(self, rng: np.random.Generator) -> None:
        """Draw a smooth score for each tissue on the grid of `_grid`, and place the glands."""
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
                kind, symmetry, chance = rng.integers(GLANDS), rng.integers(8), rng.random()
                top, left = row * GLAND_PITCH + dy, column * GLAND_PITCH + dx
                if not (
                    0 <= top <= self.rows - GLAND_SIDE and 0 <= left <= self.columns - GLAND_SIDE
                ):
                    continue
                middle = GLAND_SIDE // 2
                at = ((top + middle) // FIELD + PAD, (left + middle) // FIELD + PAD)
                near = np.s_[max(0, at[0] - 3) : at[0] + 4, max(0, at[1] - 3) : at[1] + 4]
                free = self.tumor[near].max() < 0.1 and self.fat[near].max() < 0
                if zone[at] > -0.4 and free and self.tissue[near].min() > 0.5 and chance < 0.9:
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
        """Return the labels of a window given in label pixels: uint8 (rows, columns)."""
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
        """Render a window given in label pixels: uint8 RGB (rows · 4, columns · 4, 3)."""
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
        """Blend two textures of a class into its haematoxylin and eosin, so that none repeats."""
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


def wrapped(array: NDArray[Any], top: int, left: int, rows: int, columns: int) -> NDArray[Any]:
    """Cut a window, no larger than the array, out of an array that continues periodically."""
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
    """Return the slices of a window and of a square at (top, left) where the two overlap."""
    y0, y1 = max(0, top), min(rows, top + side)
    x0, x1 = max(0, left), min(columns, left + side)
    y1, x1 = max(y0, y1), max(x0, x1)
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
