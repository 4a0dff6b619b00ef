"""Tissue textures: haematoxylin and eosin concentrations of each class, seamless at the edges.

A texture is drawn on a torus at 0.5 µm per pixel, so that copies of it join without a seam.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from shared.arrays import Float32, Float64

SIDE = 1024
"""Side of a texture, pixels."""

MPP = 0.5
"""µm per pixel of textures and of level 0 of phantom slides."""


@dataclass(frozen=True)
class Texture:
    """Stain concentrations on a torus.

    Attributes:
        haematoxylin, eosin: float32 (SIDE, SIDE), 0 or more; well-stained structures have 1.
    """

    haematoxylin: Float32
    eosin: Float32


def torus_noise(rng: np.random.Generator, sigma: float, sigma_y: float | None = None) -> Float32:
    """Draw seamless Gaussian-smoothed noise of mean 0 and variance 1; sigmas in pixels."""
    fy = np.fft.fftfreq(SIDE)[:, None]
    fx = np.fft.rfftfreq(SIDE)[None]
    gain = np.exp(-2 * np.pi**2 * ((sigma * fx) ** 2 + ((sigma_y or sigma) * fy) ** 2))
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) * gain
    noise = np.fft.irfft2(spectrum, (SIDE, SIDE)).astype(np.float32)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def scatter(
    rng: np.random.Generator, spacing: float, jitter: float = 0.45, keep: float = 1.0
) -> Float64:
    """Scatter points on the torus, on a jittered hexagonal grid.

    Args:
        rng: generator of the points.
        spacing: mean distance of neighbours, pixels.
        jitter: twice the standard deviation of a coordinate, in units of `spacing`.
        keep: share of the points that are kept.

    Returns:
        float64 (n, 2), x and y in pixels.
    """
    rows = max(2, 2 * round(SIDE / (spacing * 0.87) / 2))
    columns = max(1, round(SIDE / spacing))
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    points = np.stack([(x + 0.5 * (y % 2)) * SIDE / columns, y * SIDE / rows], -1).reshape(-1, 2)
    points = points + rng.normal(0, jitter * spacing / 2, points.shape)
    return points[rng.random(len(points)) < keep] % SIDE


def warp(texture: Float32, dx: Float32, dy: Float32) -> Float32:
    """Displace a seamless texture: each pixel takes the value at (x + dx, y + dy)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    padded = np.pad(texture, 1, mode="wrap")
    return cv2.remap(padded, (x + dx) % SIDE + 1, (y + dy) % SIDE + 1, cv2.INTER_LINEAR).astype(
        np.float32
    )


@dataclass(frozen=True)
class Nuclei:
    """The look of a population of nuclei.

    Attributes:
        length: median long axis, µm.
        spread: standard deviation of the log of the long axis.
        roundness: mean ratio of the short to the long axis.
        darkness: median haematoxylin concentration.
        rim: share by which the middle is paler than the rim.
        chromatin: strength of the grain.
        nucleolus: strength of the nucleolus; 0: none.
    """

    length: float
    spread: float
    roundness: float
    darkness: float
    rim: float = 0.25
    chromatin: float = 0.3
    nucleolus: float = 0.0


def draw_nuclei(
    h: Float32,
    points: Float64,
    angles: Float64,
    kind: Nuclei,
    rng: np.random.Generator,
    eosin: Float32 | None = None,
) -> None:
    """Draw nuclei, as irregular ellipses with chromatin and rim, into stain concentrations.

    Args:
        h: float32 (SIDE, SIDE), haematoxylin concentration; changed in place.
        points: float64 (n, 2), centres of the nuclei, x and y in pixels.
        angles: float64 (n,), directions of the long axes in radians.
        kind: the look of the nuclei.
        rng: generator of the variation between nuclei.
        eosin: float32 (SIDE, SIDE), reduced in place where there are nuclei; None: left out.
    """
    for (px, py), angle in zip(points, angles, strict=True):
        long = kind.length / MPP / 2 * float(np.exp(rng.normal(0, kind.spread)))
        short = long * float(np.clip(rng.normal(kind.roundness, 0.08), 0.22, 1.0))
        radius = int(long * 1.25) + 3
        span = np.arange(-radius, radius + 1, dtype=np.float32)
        dx = span[None] - np.float32(px % 1)
        dy = span[:, None] - np.float32(py % 1)
        c, s = np.cos(angle), np.sin(angle)
        u, v = (dx * c + dy * s) / long, (-dx * s + dy * c) / short
        theta = np.arctan2(v, u)
        phases = rng.uniform(0, 2 * np.pi, 3)
        outline = 1 + 0.07 * np.cos(2 * theta + phases[0]) + 0.05 * np.cos(3 * theta + phases[1])
        r = np.sqrt(u * u + v * v) / outline
        edge = np.clip((1.0 - r) * short / 1.1 + 0.5, 0, 1)
        grain = cv2.GaussianBlur(rng.standard_normal(r.shape).astype(np.float32), (0, 0), 1.3)
        value = 1 - kind.rim + kind.rim * np.clip(r, 0, 1) ** 3 + kind.chromatin * 2.2 * grain
        if kind.nucleolus:
            ox, oy = rng.normal(0, 0.25, 2)
            spot = np.exp(-(((u - ox) * long) ** 2 + ((v - oy) * short) ** 2) / 3.0)
            value = value + kind.nucleolus * spot
        dark = kind.darkness * float(np.exp(rng.normal(0, 0.18)))
        rows = (int(py) + np.arange(-radius, radius + 1)) % SIDE
        columns = (int(px) + np.arange(-radius, radius + 1)) % SIDE
        window = np.ix_(rows, columns)
        h[window] = np.maximum(h[window] * (1 - edge), edge * np.clip(value, 0.25, 2) * dark)
        if eosin is not None:
            eosin[window] *= 1 - 0.75 * edge


def stroma(rng: np.random.Generator, cellularity: float = 1.0) -> Texture:
    """Draw stroma: wavy collagen bundles with spindle nuclei along them."""
    bend = 55 * torus_noise(rng, 90)
    fibres = warp(torus_noise(rng, 26, 1.4), 0 * bend, bend)
    fine = warp(torus_noise(rng, 9, 0.8), 0 * bend, bend)
    bundles = warp(torus_noise(rng, 60, 6), 0 * bend, bend)
    clefts = np.clip(bundles - 0.9, 0, 1.2)
    e = 0.62 + 0.11 * fibres + 0.06 * fine + 0.10 * bundles - 0.45 * clefts
    e = np.clip(e, 0.03, 2).astype(np.float32)
    h = np.clip(0.06 + 0.015 * fine, 0, 1).astype(np.float32)
    points = scatter(rng, 46 / np.sqrt(cellularity), 0.9, 0.8)
    slope = np.gradient(bend, axis=1)
    iy, ix = points[:, 1].astype(int) % SIDE, points[:, 0].astype(int) % SIDE
    angles = -np.arctan(slope[iy, ix]) + rng.normal(0, 0.15, len(points))
    draw_nuclei(h, points, angles, Nuclei(13, 0.25, 0.26, 0.85), rng, e)
    few = scatter(rng, 150, 0.9, 0.7)
    draw_nuclei(h, few, rng.uniform(0, np.pi, len(few)), Nuclei(6.5, 0.1, 0.92, 1.15), rng, e)
    return Texture(h, e)


def tumor(rng: np.random.Generator) -> Texture:
    """Draw tumor: crowded, pleomorphic nuclei in amphophilic cytoplasm."""
    e = 0.46 + 0.07 * torus_noise(rng, 3) + 0.07 * torus_noise(rng, 14)
    h = 0.20 + 0.03 * torus_noise(rng, 2) + 0.04 * torus_noise(rng, 20)
    e, h = np.clip(e, 0.05, 2).astype(np.float32), np.clip(h, 0.02, 2).astype(np.float32)
    points = scatter(rng, 23, 0.55, 0.93)
    flow = torus_noise(rng, 40)
    angles = 1.2 * flow[points[:, 1].astype(int), points[:, 0].astype(int)]
    angles = angles + rng.normal(0, 0.5, len(points))
    kind = Nuclei(10.5, 0.20, 0.68, 0.82, rim=0.35, chromatin=0.32, nucleolus=0.45)
    draw_nuclei(h, points, angles, kind, rng, e)
    return Texture(h, e)


def lymphocytes(rng: np.random.Generator) -> Texture:
    """Draw lymphocytes: small, round, dark nuclei, close together."""
    e = np.clip(0.25 + 0.08 * torus_noise(rng, 3), 0.02, 2).astype(np.float32)
    h = np.clip(0.12 + 0.03 * torus_noise(rng, 2), 0.02, 2).astype(np.float32)
    points = scatter(rng, 14.5, 0.5, 0.93)
    kind = Nuclei(6.6, 0.10, 0.9, 1.25, rim=0.2, chromatin=0.35)
    draw_nuclei(h, points, rng.uniform(0, np.pi, len(points)), kind, rng, e)
    return Texture(h, e)


def cytoplasm(rng: np.random.Generator) -> Texture:
    """Draw glandular cytoplasm: pale, finely granular; `draw_gland` adds the nuclei."""
    e = 0.40 + 0.05 * torus_noise(rng, 2) + 0.06 * torus_noise(rng, 9)
    h = 0.14 + 0.02 * torus_noise(rng, 2)
    return Texture(np.clip(h, 0, 2).astype(np.float32), np.clip(e, 0, 2).astype(np.float32))


def fat(rng: np.random.Generator) -> Texture:
    """Draw fat: large empty cells with thin walls and a few flat nuclei."""
    points = scatter(rng, 105, 0.45)
    shifts = [np.array([i, j]) for i in (-SIDE, 0, SIDE) for j in (-SIDE, 0, SIDE)]
    tiles = np.concatenate([points + shift for shift in shifts])
    inside = (np.abs(tiles - SIDE / 2) < SIDE * 0.65).all(1)
    image = np.full((2 * SIDE, 2 * SIDE), 255, np.uint8)
    seeds = np.round(tiles[inside] + SIDE / 2).astype(int)
    seeds = seeds[((seeds >= 0) & (seeds < 2 * SIDE)).all(1)]
    image[seeds[:, 1], seeds[:, 0]] = 0
    _, owner = cv2.distanceTransformWithLabels(
        image, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner = owner[SIDE // 2 : SIDE // 2 * 3, SIDE // 2 : SIDE // 2 * 3].astype(np.float32)
    border = (cv2.Laplacian(np.pad(owner, 2, mode="wrap"), cv2.CV_32F) != 0)[2:-2, 2:-2]
    wall = cv2.GaussianBlur(np.pad(border.astype(np.float32), 16, mode="wrap"), (0, 0), 1.5)
    wall = np.clip(wall[16:-16, 16:-16] * 1.5, 0, 1)
    wall = warp(wall, 5 * torus_noise(rng, 18), 5 * torus_noise(rng, 18))
    e = (0.01 + 0.62 * wall * (1 + 0.2 * torus_noise(rng, 8))).clip(0, 2).astype(np.float32)
    h = (0.01 + 0.08 * wall).astype(np.float32)
    ys, xs = np.nonzero(wall > 0.75)
    chosen = rng.choice(len(ys), 60, replace=False)
    nuclei = np.stack([xs[chosen], ys[chosen]], -1).astype(float)
    draw_nuclei(h, nuclei, rng.uniform(0, np.pi, 60), Nuclei(10, 0.2, 0.33, 0.95), rng, e)
    return Texture(h, e)


def necrosis(rng: np.random.Generator) -> Texture:
    """Draw necrosis: smudged eosinophilic debris with pyknotic dust."""
    e = 0.60 + 0.10 * torus_noise(rng, 1.5) + 0.12 * torus_noise(rng, 7)
    e = (e + 0.10 * torus_noise(rng, 35)).clip(0.05, 2).astype(np.float32)
    h = (0.08 + 0.04 * torus_noise(rng, 6)).clip(0, 2).astype(np.float32)
    dust = scatter(rng, 17, 0.9, 0.55)
    draw_nuclei(h, dust, rng.uniform(0, 3, len(dust)), Nuclei(2.0, 0.45, 0.8, 0.8), rng)
    ghosts = scatter(rng, 50, 0.9, 0.6)
    draw_nuclei(h, ghosts, rng.uniform(0, 3, len(ghosts)), Nuclei(6.5, 0.25, 0.8, 0.45), rng)
    return Texture(h, e)
