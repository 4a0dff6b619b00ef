"""Glands: stamps of a pale lumen in a ring of epithelium, drawn once and placed often."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float32, Float64
from shared.phantom.texture import MPP, SIDE, Nuclei, Texture, draw_nuclei, torus_noise

SCALE = 4
"""Slide pixels per label pixel."""

GLAND_SIDE = 76
"""Side of a gland stamp in label pixels."""

NUCLEUS_SPACING = 5.6
"""Smallest distance between the nuclei of a gland, µm."""

EPITHELIUM = Nuclei(10.5, 0.12, 0.52, 0.85, rim=0.3, chromatin=0.25)


@dataclass(frozen=True)
class GlandStamp:
    """A drawn gland, which is placed at many positions.

    Attributes:
        mask: bool (GLAND_SIDE, GLAND_SIDE), True in label pixels that the gland covers.
        haematoxylin, eosin: float32 (GLAND_SIDE · 4, GLAND_SIDE · 4), stain concentrations.
    """

    mask: NDArray[np.bool_]
    haematoxylin: Float32
    eosin: Float32


def draw_gland(rng: np.random.Generator, cytoplasm: Texture) -> GlandStamp:
    """Draw a gland: a pale lumen in a ring of epithelium with nuclei at its base."""
    side = GLAND_SIDE * SCALE
    mask = _lobed_ellipse(rng, side)
    inside = cv2.resize(mask.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_LINEAR)
    depth = cv2.distanceTransform((inside > 127).astype(np.uint8), cv2.DIST_L2, 5) * MPP
    thickness = rng.uniform(12, 18)
    haematoxylin = cytoplasm.haematoxylin[:side, :side].copy()
    eosin = cytoplasm.eosin[:side, :side].copy()
    eosin += 0.12 * np.exp(-((depth - thickness) ** 2) / 6)  # darker at the border of the lumen
    lumen = np.clip((depth - thickness) / 2.5, 0, 1)
    secretion = 0.10 * np.clip(torus_noise(rng, 14)[:side, :side], 0, 2)
    eosin = eosin * (1 - lumen) + lumen * secretion
    haematoxylin = haematoxylin * (1 - lumen) + lumen * 0.015
    centres, angles = _basal_nuclei(rng, depth)
    canvas, displaced = np.zeros((SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), np.float32)
    draw_nuclei(canvas, centres, angles, EPITHELIUM, rng, displaced)
    nuclei = canvas[:side, :side]
    return GlandStamp(
        mask,
        np.where(nuclei > 0.05, np.maximum(nuclei, haematoxylin), haematoxylin).astype(np.float32),
        (eosin * displaced[:side, :side]).astype(np.float32),
    )


def _lobed_ellipse(rng: np.random.Generator, side: int) -> NDArray[np.bool_]:
    """Draw a turned ellipse with a wavy outline: bool (GLAND_SIDE, GLAND_SIDE)."""
    span = np.arange(side, dtype=np.float32) - side / 2
    polar_angle = np.arctan2(span[:, None], span[None])
    stretch, turn = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    cosine, sine = np.cos(turn), np.sin(turn)
    along = span[None] * cosine + span[:, None] * sine
    across = (-span[None] * sine + span[:, None] * cosine) / stretch
    phases = rng.uniform(0, 2 * np.pi, 3)
    amplitudes = rng.uniform(0.02, 0.09, 3)
    waves = zip(amplitudes, phases, strict=True)
    wobble = sum(
        amplitude * np.cos(lobes * polar_angle + phase)
        for lobes, (amplitude, phase) in enumerate(waves, 2)
    )
    radius = side * rng.uniform(0.24, 0.40)
    fine = (np.hypot(along, across) < radius * (1 + wobble)).astype(np.uint8)
    mask: NDArray[np.bool_] = fine.reshape(GLAND_SIDE, SCALE, GLAND_SIDE, SCALE).mean((1, 3)) > 0.5
    return mask


def _basal_nuclei(rng: np.random.Generator, depth: Float32) -> tuple[Float64, Float64]:
    """Place nuclei at the base of the epithelium, pointing to the lumen.

    Args:
        rng: generator of positions and angles.
        depth: float32 (side, side), distance from the gland's outline in µm.

    Returns:
        float64 (n, 2) centres, x and y in pixels, and float64 (n,) angles in radians.
    """
    ring = np.abs(depth - rng.uniform(5.0, 7.0)) < 1.0
    ys, xs = np.nonzero(ring)
    placed: list[tuple[float, float]] = []
    for i in rng.permutation(len(ys)):
        if all(
            (xs[i] - x) ** 2 + (ys[i] - y) ** 2 > (NUCLEUS_SPACING / MPP) ** 2 for x, y in placed
        ):
            placed.append((float(xs[i]), float(ys[i])))
    centres = np.array(placed)
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(depth, (0, 0), 4))
    rows, columns = centres[:, 1].astype(int), centres[:, 0].astype(int)
    angles = np.arctan2(slope_y[rows, columns], slope_x[rows, columns])
    return centres, angles + rng.normal(0, 0.2, len(centres))
