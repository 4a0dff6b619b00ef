"""What does it cost to return memory to the system?  python benchmarks/allocation.py [--out FILE]

Measures the images per second of an encoder (EfficientNet-lite0, untrained, 224 px), the page
faults per image and the peak memory: in a process with the default allocator, and in a process in
which `shared.computing.prepare` makes the C library keep freed memory; with batches of 64 images,
and with batches of `CPU_BATCH` images, which `Encoder.encode` uses. The variants run in turn; the
results are medians of 3 runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch

from shared.computing import prepare
from shared.encoders import CPU_BATCH

SECONDS = 15.0
ROUNDS = 3


def work(batch: int, threads: int, *, keep: bool) -> dict[str, float]:
    """Measure the encoder in this process: images per second, page faults per image, peak MB.

    Args:
        batch: number of images at a time.
        threads: number of CPU threads.
        keep: keep freed memory, by `shared.computing.prepare`.
    """
    if keep:
        prepare(threads)
    torch.set_num_threads(threads)
    encoder = timm.create_model("efficientnet_lite0").eval()
    images = torch.zeros(batch, 3, 224, 224)
    with torch.inference_mode():
        encoder(images)
        faults, start, done = usage().ru_minflt, time.perf_counter(), 0
        while time.perf_counter() < start + SECONDS:
            encoder(images)
            done += batch
    return {
        "images_per_second": done / (time.perf_counter() - start),
        "page_faults_per_image": (usage().ru_minflt - faults) / done,
        "peak_memory_mb": usage().ru_maxrss / 1024,
    }


def usage() -> resource.struct_rusage:
    """Return the resource usage of this process."""
    return resource.getrusage(resource.RUSAGE_SELF)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if given.batch:
        print(json.dumps(work(given.batch, cores, keep=given.keep)))
        return
    ways = {
        f"{name}, {batch} at a time": ["--batch", str(batch), *options]
        for name, options in (("as it comes", []), ("kept", ["--keep"]))
        for batch in (64, CPU_BATCH)
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, options in ways.items():
            command = [sys.executable, __file__, *options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way].append(json.loads(done.stdout))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": cores,
        **{
            way: {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}
            for way, runs in found.items()
        },
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
