"""Cohorts of small slides with a stub encoder, for benchmarks of whole cohorts.

Slides are real JPEG pyramids that differ in their description alone, so they are read and decoded
as any other.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import services.embed.stage
from services.cluster.stage import ClusterStage
from services.embed.stage import EmbedStage
from services.ingest.stage import IngestStage
from shared.arrays import Float32, UInt8
from shared.contracts.base import Request
from shared.contracts.cluster import ClusterRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.regions import RegionRule
from shared.encoders import Encoder
from shared.jobs import Stage
from shared.settings import Settings
from tests.texture_slides import texture_slide

STAGES: dict[str, type[Stage[Any]]] = {
    "ingest": IngestStage, "embed": EmbedStage, "cluster": ClusterStage,
}  # fmt: skip
CONFIG = Settings(threads=1, device="cpu", lease_seconds=10)
SIDE, PATCH = 512, 64
"""Side of a small slide and of its patches, pixels."""

PAUSE = "HTD_BENCH_PAUSE"
"""Environment variable: seconds that the stub encoder pauses for each patch."""

LOOKS = 32
"""Small slides that look different."""


class StubEncoder(Encoder):
    """Mean colours of quarters of a patch; it pauses as long as a network on a GPU would take."""

    def encode(self, images: UInt8, batch_size: int = 64) -> Float32:
        time.sleep(float(os.environ.get(PAUSE, "0")) * len(images))
        parts = images.reshape(len(images), 2, PATCH // 2, 2, PATCH // 2, 3).mean((2, 4))
        return np.repeat(parts.reshape(len(images), 12), self.dim // 12, 1).astype(np.float32)


def stub_encoder(name: str, *_: object, **__: object) -> StubEncoder:
    """Return the stub in the place of `load_encoder`."""
    around = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return StubEncoder(name, 384, PATCH, around, "none", "cpu", lambda pixels: pixels, PATCH)


services.embed.stage.load_encoder = stub_encoder  # type: ignore[attr-defined]


def write_slide(path: Path, image: UInt8) -> None:
    """Write a JPEG pyramid of two levels, at 1 µm per pixel."""
    about: dict[str, Any] = {
        "tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "resolution": (1e4, 1e4),
        "resolutionunit": "CENTIMETER", "metadata": None,
    }  # fmt: skip
    with tifffile.TiffWriter(path) as file:
        file.write(image, subifds=1, description="slide 0000000", **about)
        file.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **about)


def small_slides(folder: Path, count: int) -> tuple[SlideSource, ...]:
    """Write small slides."""
    folder.mkdir(parents=True, exist_ok=True)
    looks = []
    for look in range(min(count, LOOKS)):
        write_slide(folder / "look.tiff", texture_slide(SIDE, look)[0])
        looks.append((folder / "look.tiff").read_bytes())
    for number in range(count):
        data = looks[number % LOOKS].replace(b"slide 0000000", f"slide {number:07d}".encode())
        (folder / f"s{number:06d}.tiff").write_bytes(data)
    return tuple(
        SlideSource(
            slide=f"s{number:06d}", source=str(folder / f"s{number:06d}.tiff"), mpp=1.0,
            split="train",
        )
        for number in range(count)
    )  # fmt: skip


def requests(slides: tuple[SlideSource, ...]) -> list[Request]:
    """Return the requests of a cohort, from its slides to its regions."""
    grid = PatchGrid(size=PATCH, mpp=1.0, stride=PATCH)
    rule = RegionRule(size=128, mpp=1.0, max_per_slide=4)
    return [
        IngestRequest(cohort="c", slides=slides, patches=grid, regions=rule),
        EmbedRequest(cohort="c", encoder="stub"),
        ClusterRequest(run="r", cohort="c", encoder="stub", k=4, sample_per_slide=16),
    ]
