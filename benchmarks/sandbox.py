"""What does the sandbox cost?  python -m benchmarks.sandbox SLIDE

Patches of one slide are read in turn in this process and through the sandbox, at the same places.
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
from pathlib import Path

import numpy as np
import openslide
import psutil

from shared.computing import prepare
from shared.imaging import sandboxed_slide, slide_files
from shared.imaging.slide import Slide
from shared.sandbox import protections

Opener = Callable[[Path], openslide.AbstractSlide]
WAYS: dict[str, Opener] = {
    "direct": slide_files.open_source,
    "sandbox": sandboxed_slide.open_source,
}


def main() -> None:
    """Read the command line, measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--patch", type=int, default=256, help="side of a patch, pixels")
    parser.add_argument("--patches", type=int, default=200, help="patches of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    prepare(1)  # as workers do
    figures = json.dumps(measure(asked.slide, asked.patch, asked.patches, asked.rounds), indent=1)
    print(figures)
    if asked.out:
        asked.out.write_text(figures + "\n")


def measure(path: Path, side: int, patches: int, rounds: int) -> dict[str, object]:
    """Read `patches` patches of `side` px in each of `rounds`, in both ways."""
    slides = {way: Slide(path, open_it(path), 1.0) for way, open_it in WAYS.items()}
    opening: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    own = psutil.Process()
    processes = [own, *own.children(recursive=True)]
    rng = np.random.default_rng(0)
    for number in range(rounds):
        ways = list(WAYS) if number % 2 else list(WAYS)[::-1]
        size = [max(1, each - side) for each in (slides["direct"].width, slides["direct"].height)]
        corners = rng.integers(size, size=(patches, 2)).tolist()
        for way in ways:
            began = time.perf_counter()
            WAYS[way](path).close()
            opening[way].append(time.perf_counter() - began)
            began, before = time.perf_counter(), _processor_seconds(processes)
            for x, y in corners:
                slides[way].read(x, y, (side, side), 1.0)
            seconds[way].append(time.perf_counter() - began)
            processor[way].append(_processor_seconds(processes) - before)
    for slide in slides.values():
        slide.close()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "slide": path.name,
        "protections": protections(),
        "load": os.getloadavg()[0],
        "patch_ms": {way: statistics.median(all_) / patches * 1e3 for way, all_ in seconds.items()},
        "open_ms": {way: statistics.median(all_) * 1e3 for way, all_ in opening.items()},
        "patch_processor_ms": {
            way: statistics.median(all_) / patches * 1e3 for way, all_ in processor.items()
        },
        "cost": _cost(seconds),
        "processor_cost": _cost(processor),
    }


def _processor_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _cost(measured: dict[str, list[float]]) -> float:
    """Return the median share that the sandbox adds."""
    pairs = zip(measured["sandbox"], measured["direct"], strict=True)
    return statistics.median(sandbox / direct for sandbox, direct in pairs) - 1


if __name__ == "__main__":
    main()
