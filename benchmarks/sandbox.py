"""What does the sandbox cost?  python -m benchmarks.sandbox SLIDE

The same places of one slide are read in turn in this process and through the sandbox: as patches,
many at a time, as `htd embed` reads them; and as single windows, as a page of slides shows them.
Seconds suffer from whatever else the machine does; processor time (of both processes) hardly does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from shared.arrays import Int64
from shared.computing import prepare
from shared.imaging import sandboxed_slide, slide_files
from shared.imaging.patch_cutting import PatchCutter
from shared.imaging.patch_reading import read_patches, tile_order
from shared.imaging.slide import Slide
from shared.sandbox import protections

SIDE, AT_ONCE = 256, 64


def main() -> None:
    """Read the command line, measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--patches", type=int, default=512, help="patches of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    prepare(1)  # as workers do
    figures = json.dumps(measure(asked.slide, asked.patches, asked.rounds), indent=1)
    print(figures)
    if asked.out:
        asked.out.write_text(figures + "\n")


def measure(path: Path, patches: int, rounds: int) -> dict[str, object]:
    """Read `patches` patches of `SIDE` px in each of `rounds`, in all ways."""
    sources = {
        "direct": slide_files.open_source(path),
        "sandbox": sandboxed_slide.open_source(path),
    }
    slides = {way: Slide(path, source, 1.0) for way, source in sources.items()}
    cutter = PatchCutter(path, sources["direct"])
    size = [max(1, each - SIDE) for each in (slides["direct"].width, slides["direct"].height)]
    rng = np.random.default_rng(0)

    def windows(way: str, corners: Int64) -> None:
        for x, y in corners[:100].tolist():
            slides[way].read(x, y, (SIDE, SIDE), 1.0)

    def direct(corners: Int64) -> None:
        out = np.empty((AT_ONCE, SIDE, SIDE, 3), np.uint8)
        ordered = corners[tile_order(slides["direct"], corners, 0)]
        for start in range(0, len(ordered), AT_ONCE):
            part = [(x, y) for x, y in ordered[start : start + AT_ONCE].tolist()]
            cutter.cut(part, 0, (SIDE, SIDE), out[: len(part)])

    def sandboxed(corners: Int64) -> None:
        for _ in read_patches(slides["sandbox"], corners, SIDE, 1.0, AT_ONCE):
            pass

    ways: dict[str, dict[str, Callable[[Int64], None]]] = {
        "patches": {"direct": direct, "sandbox": sandboxed},
        "single windows": {way: partial(windows, way) for way in slides},
    }
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {
        kind: {way: [] for way in both} for kind, both in ways.items()
    }
    for number in range(rounds):
        corners = rng.integers(size, size=(patches, 2))
        for kind, both in ways.items():
            for way in list(both) if number % 2 else list(both)[::-1]:
                began, before = time.perf_counter(), _processor_seconds(processes)
                both[way](corners)
                used = _processor_seconds(processes) - before
                taken[kind][way].append((time.perf_counter() - began, used))
    for slide in slides.values():
        slide.close()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "slide": path.name,
        "protections": protections(),
        "load": os.getloadavg()[0],
        "n": rounds,
        "cost in seconds": {kind: _cost(both, 0) for kind, both in taken.items()},
        "cost in processor time": {kind: _cost(both, 1) for kind, both in taken.items()},
    }


def _processor_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _cost(taken: dict[str, list[tuple[float, float]]], measure: int) -> float:
    """Return the median share that the sandbox adds."""
    pairs = zip(taken["sandbox"], taken["direct"], strict=True)
    shares = (sandbox[measure] / direct[measure] - 1 for sandbox, direct in pairs)
    return round(statistics.median(shares), 3)


if __name__ == "__main__":
    main()
