"""The textures and the staining of one phantom slide, drawn from its seed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.phantom import texture
from shared.phantom.glands import GlandStamp, draw_gland
from shared.phantom.texture import Texture

PHANTOM_CLASSES = Classes.of("stroma", "tumor", "lymphocytes", "gland", "fat", "necrosis")
STROMA, TUMOR, LYMPHOCYTES, GLAND, FAT, NECROSIS = range(1, 7)

LEVELS = 200
"""Steps per unit of stain concentration in the palette."""

GLANDS = 10
"""Number of gland stamps of a slide."""


@dataclass(frozen=True)
class Banks:
    """The textures of a slide: two for each class, and the gland stamps."""

    tissue: dict[int, tuple[Texture, Texture]]
    glands: list[GlandStamp]


_DRAWING = threading.Lock()
"""Lock by which only one of the threads that render a slide draws the textures."""


def texture_banks(seed: int) -> Banks:
    """Return the textures of a slide; those of the last slide are cached."""
    with _DRAWING:
        return _banks(seed)


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
    tissue = {label: (_blurred(make(rng)), _blurred(make(rng))) for label, make in makers.items()}
    across = tissue[STROMA][1]  # at right angles to the first, so that fibres interweave
    tissue[STROMA] = (tissue[STROMA][0], Texture(across.haematoxylin.T, across.eosin.T))
    return Banks(tissue, [draw_gland(rng, tissue[GLAND][0]) for _ in range(GLANDS)])


def _blurred(drawn: Texture) -> Texture:
    """Blur a texture as a microscope's optics do, without a seam."""
    pad = 8
    parts = [
        cv2.GaussianBlur(np.pad(part, pad, mode="wrap"), (0, 0), 0.7)[pad:-pad, pad:-pad]
        for part in (drawn.haematoxylin, drawn.eosin)
    ]
    return Texture(*(np.ascontiguousarray(part, np.float32) for part in parts))


def stain_palette(rng: np.random.Generator) -> UInt8:
    """Make the colour of every pair of stain concentrations by the Beer-Lambert law.

    The stain vectors are those of Ruifrok and Johnston 2001, varied a little for each slide.

    Returns:
        uint8 RGB (512, 512, 3) by haematoxylin and eosin concentration, in steps of 1/LEVELS.
    """
    haematoxylin = np.array([0.65, 0.73, 0.33]) + rng.normal(0, [0.05, 0.035, 0.05])
    eosin = np.array([0.20, 0.90, 0.44]) + rng.normal(0, [0.05, 0.04, 0.08])
    eosin = eosin.clip(0.02)
    strength_h, strength_e = rng.uniform(0.80, 1.25), rng.uniform(0.32, 0.62)
    glass = 246 + rng.normal(0, 2.0, 3)
    levels = np.arange(512)[:, None] / LEVELS
    density = (strength_h * levels * haematoxylin)[:, None] + (strength_e * levels * eosin)[None]
    return np.asarray((glass * 10**-density).round().clip(0, 255), np.uint8)
