"""Small slides of tissues that differ in texture, not in colour; each slide has its own stain."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from services.ingest.stage import IngestStage
from shared.contracts.base import Classes, Split
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.regions import RegionRule
from shared.jobs import Ledger, run_job
from shared.storage import Store

CLASSES = Classes.of("dots", "fibres", "blobs")
RULE = RegionRule(size=128, mpp=1.0, max_per_slide=12)
SPLITS: dict[str, Split] = {"s0": "train", "s1": "train", "s2": "train", "s3": "test"}


def texture_slide(side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw uint8 RGB (side, side, 3), three bands of tissue in a margin of glass, and labels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(side, side)).astype(np.float32)
    fields = [
        cv2.GaussianBlur(noise, (0, 0), 1.5),
        cv2.GaussianBlur(noise, (0, 0), sigmaX=10, sigmaY=1.5),
        cv2.GaussianBlur(noise, (0, 0), 6),
    ]
    labels = np.zeros((side, side), np.uint8)
    density = np.zeros((side, side), np.float32)
    edges = np.linspace(32, side - 32, 4).astype(int)
    for index, field in enumerate(np.roll(np.arange(3), seed)):
        band = (slice(32, side - 32), slice(edges[index], edges[index + 1]))
        values = fields[field] / fields[field].std()
        density[band] = 0.55 + 0.45 * np.tanh(2 * values[band])
        labels[band] = field + 1
    stain = np.array([0.25, 0.75, 0.35]) * np.exp(rng.normal(0, 0.25, 3))
    image = 250 * np.exp(-density[..., None].clip(0) * stain)
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8), labels


def ingest_textures(store: Store, folder: Path, side: int = 512, stride: int = 32) -> None:
    """Ingest the slides of `SPLITS` with their labels as the cohort `textures`."""
    sources = []
    for number, (name, split) in enumerate(SPLITS.items()):
        image, labels = texture_slide(side, number)
        slide, mask = folder / f"{name}.tiff", folder / f"{name}_mask.tiff"
        tifffile.imwrite(
            slide, image, tile=(256, 256), photometric="rgb", resolution=(1e4, 1e4),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
        tifffile.imwrite(mask, labels)
        sources.append(
            SlideSource(slide=name, source=str(slide), labels=str(mask), mpp=1.0, split=split)
        )
    request = IngestRequest(
        cohort="textures", slides=tuple(sources), classes=CLASSES,
        patches=PatchGrid(size=64, mpp=1.0, stride=stride), regions=RULE,
    )  # fmt: skip
    ledger = Ledger(store)
    assert run_job(ledger, IngestStage(), ledger.submit(request)).state == "done"
