"""How fast do patches come out of a slide?  python -m benchmarks.data_path [SLIDE ...]

Ways are interleaved, round by round; figures are medians of ratios within a round. Processor time
of all processes is compared, because seconds suffer from whatever else the machine does. Without
SLIDE, a JPEG pyramid and an SVS are made of a drawn tissue. Other libraries are measured beside it
if they are there (`benchmarks.patch_readers`). Figures are added to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
import psutil
import tifffile

from benchmarks.patch_readers import READERS, Read, usable
from services.cluster.kmeans import assign, half_units, kmeans, normalize
from services.cluster.patches import PATCHES_AT_ONCE
from shared.arrays import Int64, UInt8
from shared.computing import prepare
from shared.contracts.ingest import PatchGrid, SlideRecord
from shared.features import FeaturesFile, write_features
from shared.imaging.patch_reading import read_patches
from shared.imaging.sandboxed_slide import SandboxedSlide
from shared.imaging.slide import Slide
from shared.storage.cache import FileCache

SIDE, BATCH, MPP = 256, 64, 0.5
WIDTH, TYPES = 1536, 100
RESULTS = Path(__file__).parent / "results" / "scale.json"


def main() -> None:
    """Read the command line, measure, print the figures, and add them to those of the scale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packages", type=Path, help="folder of libraries to compare with")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.packages:
        sys.path.append(str(asked.packages))  # after the project's own packages
    prepare(1)  # as workers do
    with tempfile.TemporaryDirectory() as folder:
        # First, because libraries that are compared may disturb FAISS (SimpleITK does).
        _add(asked.out, {"clustering": clustering(Path(folder)), "cache": cached(Path(folder))})
        paths = asked.slides or drawn_slides(Path(folder))
        _add(asked.out, {"data_path": {path.name: measure(path, asked.rounds) for path in paths}})


def _add(out: Path, figures: dict[str, Any]) -> None:
    """Print figures, and add them to those of a file."""
    print(json.dumps(figures, indent=1), flush=True)
    known = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(known | figures, indent=1) + "\n")


def measure(path: Path, rounds: int) -> dict[str, object]:
    """Measure the reading of a slide's level 0 in all ways, which take turns."""
    decode, pixels = bare(path)
    readers, absent = usable(path, SIDE)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "bare": lambda: (timed(partial(decode, psutil.cpu_count() or 1))[1], pixels),
        "bare, one core": lambda: (timed(partial(decode, 1))[1], pixels),
        "ours": lambda: ours(path, SIDE),
        "ours, half overlapping": lambda: ours(path, SIDE // 2),
        "one by one": lambda: one_by_one(path, SIDE),
        "one by one, half overlapping": lambda: one_by_one(path, SIDE // 2),
        **{name: partial(plain, path, READERS[name], SIDE) for name in readers},
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else list(ways)[::-1]:
            seconds, delivered = ways[name]()
            rates[name].append(delivered / seconds)

    def ratio(one: str, other: str) -> float:
        pairs = zip(rates[one], rates[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "load": os.getloadavg()[0],
        "megapixels per processor second": {
            name: round(statistics.median(own) / 1e6, 1) for name, own in rates.items()
        },
        "ours ÷ bare decoding": ratio("ours", "bare"),
        "one by one ÷ bare decoding": ratio("one by one", "bare"),
        "ours ÷ one by one, half overlapping": ratio(
            "ours, half overlapping", "one by one, half overlapping"
        ),
        **{f"ours ÷ {name}": ratio("ours", name) for name in readers},
        "grey levels off OpenSlide's": readers,
        "not measured": absent,
        "share of time that an encoder of 0.8 × the rate waits": round(
            statistics.median(waiting(path) for _ in range(rounds)), 3
        ),
    }


def corners_of(slide: Slide, step: int) -> Int64:
    """Return the corners of patches all over a slide, int64 (n, 2)."""
    xs, ys = (np.arange(0, max(1, size - SIDE + 1), step) for size in (slide.width, slide.height))
    return np.stack([a.ravel() for a in np.meshgrid(xs, ys)], 1).astype(np.int64)


def bare(path: Path) -> tuple[Callable[[int], object], int]:
    """Return what decodes the JPEG tiles of level 0, read before, and how many pixels they have.

    It is given the number of threads. Cores that are busy together slow each other down, so our
    reader, which keeps all of them busy, is compared with decoding on all of them.
    """
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        space = "YCBCR" if page.photometric == 6 else "RGB"
        data = []
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            tiff.filehandle.seek(offset)
            data.append(tiff.filehandle.read(count))
        options: dict[str, Any] = {
            "tables": page.jpegtables,
            "colorspace": space,
            "outcolorspace": "RGB",
        }
    pixels = len(data) * page.tilewidth * page.tilelength

    shape = (page.tilelength, page.tilewidth, 3)

    def some(tiles: Sequence[bytes]) -> None:
        tile = np.empty(shape, np.uint8)  # fresh memory for each would cost a tenth
        for content in tiles:
            imagecodecs.jpeg8_decode(content, out=tile, **options)

    def decode(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, [data[first::threads] for first in range(threads)]))

    return decode, pixels


@contextmanager
def opened(path: Path) -> Iterator[tuple[Slide, list[psutil.Process]]]:
    """Open a slide in the sandbox; yield the processes whose time counts as well."""
    own = psutil.Process()
    with Slide.open(path, MPP) as slide:
        assert isinstance(slide.source, SandboxedSlide)
        yield slide, [own, psutil.Process(slide.source.process)]


def ours(path: Path, step: int) -> tuple[float, float]:
    """Return processor seconds, and pixels of the patches."""
    with opened(path) as (slide, processes):
        corners = corners_of(slide, step)

        def read(some: Int64) -> None:
            for batch in read_patches(slide, some, SIDE, MPP, BATCH):
                batch.images[0, 0, 0].sum()

        read(corners[-4 * BATCH :])  # memory that is fresh, once for each slide
        return timed(lambda: read(corners), processes)[1], len(corners) * SIDE**2


def one_by_one(path: Path, step: int) -> tuple[float, float]:
    """Return processor seconds, and pixels of the patches."""
    with opened(path) as (slide, processes):
        corners = corners_of(slide, step)
        used = corners[:: 1 + len(corners) // 500] if step == SIDE else corners[:500]

        def read() -> None:
            for x, y in used.tolist():
                slide.read(x, y, (SIDE, SIDE), MPP)

        return timed(read, processes)[1], len(used) * SIDE**2


def plain(path: Path, open_with: Callable[[Path], Read], step: int) -> tuple[float, float]:
    """Return processor seconds of a plain loop over a reader, and pixels of the patches."""
    with Slide.open(path, MPP) as slide:
        corners = corners_of(slide, step)
    read = open_with(path)  # a new one each time, so that nothing is in its cache

    def loop() -> list[UInt8]:
        return [read(x, y, SIDE)[:1, :1] for x, y in corners.tolist()]

    return timed(loop)[1], len(corners) * SIDE**2


def waiting(path: Path) -> float:
    """Return the share of time that a stub encoder waits, which takes 1 ÷ 0.8 of the reading."""

    def read(pause: float) -> float:
        with opened(path) as (slide, _):
            corners = corners_of(slide, SIDE // 2)
            began = last = time.perf_counter()
            waited = 0.0
            for batch in read_patches(slide, corners, SIDE, MPP, BATCH):
                waited += time.perf_counter() - last
                time.sleep(pause * len(batch.rows))
                last = time.perf_counter()
            return waited / (last - began if pause else len(corners))

    return read(read(0.0) / 0.8)


def cached(folder: Path) -> dict[str, float]:
    """Go through 200 GB of sparse slides with a cache of 2 GB; return the most that it held."""
    cache, most = FileCache(folder / "cache", 2 * 10**9), 0
    for number in range(200):
        size = 10**9 + number

        def fetch(file: IO[bytes], size: int = size) -> None:
            file.seek(size)

        cache.file(f"store/{number}/slide.svs", size, fetch)
        held = sum(path.stat().st_size for path in cache.folder.rglob("*.svs"))
        most = max(most, held)
    return {"GB gone through": 200, "HTD_CACHE_GB": 2, "largest GB on disk": most / 1e9}


def clustering(folder: Path) -> dict[str, float]:
    """Measure what clustering does with features as wide as UNI2-h's, per processor second."""
    rows = np.random.default_rng(0).normal(size=(PATCHES_AT_ONCE, WIDTH)).astype(np.float32)
    path = folder / "features.h5"
    slide = SlideRecord(
        slide="s", source="s.svs", sha256="", width=9**6, height=9**6, mpp=MPP, mpp_y=MPP,
        vendor="", levels=1, objective=None, tissue_fraction=1, stain="unknown",
    )  # fmt: skip
    write_features(path, np.zeros((len(rows), 2), np.int64), [rows], WIDTH, slide, PatchGrid(), "")
    points, centroids = half_units(rows), normalize(rows[:TYPES])

    def rate(do: Callable[[], object], count: float) -> int:
        return round(statistics.median(count / timed(do)[1] for _ in range(3)))

    with FeaturesFile(path) as file:
        own = psutil.Process()
        both = [own, *own.children(recursive=True)]
        read = min(timed(file.features, both)[1] for _ in range(3))
    return {
        "width": WIDTH,
        "k": TYPES,
        "patches read": round(len(rows) / read),
        "patches assigned": round(
            1 / (1 / rate(lambda: assign(rows, centroids), len(rows)) + read / len(rows))
        ),
        "rows of an iteration": rate(
            lambda: kmeans(points, TYPES, 2, 0, start=centroids), 2 * len(rows)
        ),
    }


def timed(
    do: Callable[[], object], processes: list[psutil.Process] | None = None
) -> tuple[float, float]:
    """Return the seconds, and the processor seconds of processes (this one), that a call takes."""
    own = processes or [psutil.Process()]
    began, before = time.perf_counter(), _processor_seconds(own)
    do()
    return time.perf_counter() - began, _processor_seconds(own) - before


def _processor_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def drawn_slides(folder: Path) -> list[Path]:
    """Make a JPEG pyramid and an SVS of noise with the spectrum of tissue, 6,144 px wide."""
    rng = np.random.default_rng(0)
    pixels = np.full((6144, 6144, 3), 230, np.float32)
    for octave, weight in ((8, 40), (32, 30), (128, 30)):
        side = 6144 // octave
        coarse = rng.normal(0, weight, (side, side, 3)).astype(np.float32)
        pixels -= np.abs(coarse).repeat(octave, 0).repeat(octave, 1)
    image = (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
    paths = [folder / "pyramid.tif", folder / "drawn.svs"]
    aperio = f"Aperio Image Library\n6144x6144|AppMag = 20|MPP = {MPP}"
    for path, tile, description in zip(paths, (256, 240), (None, aperio), strict=True):
        tifffile.imwrite(
            path, image, tile=(tile, tile), compression="jpeg", photometric="ycbcr",
            compressionargs={"level": 80}, subsampling=(2, 2), metadata=None,
            description=description,
        )  # fmt: skip
    return paths


if __name__ == "__main__":
    main()
