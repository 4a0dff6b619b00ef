"""Does any process grow?  python -m benchmarks.soak --hours 2 --out benchmarks/results/soak.json

A real stack makes datasets and single images of a toy model, ingests slides and shows their tiles
through the gateway, without an end; what was made is deleted again. The memory of every process is
sampled: growth is the difference between the medians of the last fifth of the samples and of the
fifth after the first. A process that leaks on purpose shows that growth is seen. A process that
was restarted, such as a child of a pool, counts from its restart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil

from heterotissue.stack.supervisor import Stack
from shared.phantom import PHANTOM_CLASSES, write_phantom
from shared.storage import open_store
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

MAX_GROWTH_MB = 100.0
SAMPLES = 200
SERVICES = ["ingest", "synthesize", "image"]
LEAK = "leak (on purpose)"


class Memory:
    """The memory of processes over time.

    Attributes:
        samples: name and id of a process → its memory in MiB, in the order of the samples.
    """

    def __init__(self) -> None:
        self.samples: dict[tuple[str, int], list[float]] = defaultdict(list)

    def sample(self, roots: dict[str, int]) -> None:
        """Measure processes, by name → id, and all their children."""
        for name, root in roots.items():
            with suppress(psutil.NoSuchProcess):
                main = psutil.Process(root)
                for process in (main, *main.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        part = name if process.pid == root else f"{name}'s child"
                        memory = process.memory_full_info().uss / 2**20
                        self.samples[part, process.pid].append(memory)

    def growth(self, least: int) -> dict[str, dict[str, float]]:
        """Return the growth of each process that has at least that many samples, in MiB."""
        return {
            f"{name} {pid}": {
                "first": round(first, 1),
                "last": round(last, 1),
                "growth": round(last - first, 1),
                "samples": len(values),
            }
            for (name, pid), values in sorted(self.samples.items())
            if len(values) >= least
            for fifth in [len(values) // 5]
            for first, last in [
                (
                    statistics.median(values[fifth : 2 * fifth]),
                    statistics.median(values[-fifth:]),
                )
            ]
        }


def leak(per_second: float) -> None:
    """Hold ever more memory, MiB per second."""
    held = []
    while True:
        held.append(os.urandom(int(per_second * 2**20 / 4)))
        time.sleep(0.25)


class Load:
    """Requests to the gateway that use everything again and again."""

    def __init__(self, client: httpx2.Client, slide: bytes, annotation: bytes) -> None:
        self.client, self.slide, self.annotation = client, slide, annotation
        self.rounds = self.images = self.tiles = 0

    def round(self) -> None:
        """Make a dataset, ingest a slide, look at its tiles; delete the dataset."""
        name = f"soak-{self.rounds}"
        body = {
            "dataset": name, "model": "toy", "images": 24, "shard_size": 4, "batch_size": 4,
            "seed": self.rounds,
        }  # fmt: skip
        self._send("POST", "/v1/datasets", json=body)
        self._ingest(f"slide-{self.rounds % 4}")
        self._wait(f"/v1/datasets/{name}")
        self.images += 24
        self._send("GET", f"/v1/datasets/{name}/preview")
        self._send("DELETE", f"/v1/datasets/{name}")
        self.rounds += 1

    def _ingest(self, slide: str) -> None:
        self._send("PUT", f"/v1/slides/{slide}/source/p.tiff", content=self.slide)
        place = f"/v1/slides/{slide}/annotation/p.geojson"
        info = self._send("PUT", place, content=self.annotation).json()
        body = {
            "cohort": "soak",
            "slides": [{"slide": slide, "source": info["source"], "labels": info["annotation"]}],
            "classes": PHANTOM_CLASSES.model_dump(mode="json"),
            "patches": {"size": 64, "mpp": 1.0, "stride": 64},
            "regions": {"size": 64, "mpp": 1.0, "overlap": self.rounds % 8 / 16},
        }
        job = self._send("POST", "/v1/ingest?replace=true", json=body).json()["job"]
        self._wait(f"/v1/jobs/{job}")
        for level, columns in ((8, 1), (9, 2), (10, 3)):  # all that there are in the top row
            for x in range(columns):
                self._send("GET", f"/v1/slides/{slide}/deepzoom_files/{level}/{x}_0.jpeg")
                self.tiles += 1

    def _send(self, method: str, place: str, **content: Any) -> httpx2.Response:
        """Send a request, again after a while where a token has sent too many."""
        while (answer := self.client.request(method, place, **content)).status_code == 429:
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        if not answer.is_success:
            raise RuntimeError(f"{method} {place}: {answer.status_code} {answer.text}")
        return answer

    def _wait(self, place: str) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            state = self._send("GET", place).json()["state"]
            if state not in {"planning", "running"}:
                if state != "done":
                    raise RuntimeError(f"{place} is {state}")
                return
            time.sleep(0.2)
        raise RuntimeError(f"{place} does not end")


def run(folder: Path, hours: float, out: Path | None) -> dict[str, Any]:
    """Load a stack for some hours; return the figures, which are also written to `out`."""
    seconds = hours * 3600
    phantom = write_phantom(folder, "p", 1500, 1000, seed=0).slide
    memory = Memory()
    with Stack(folder / "stack", SERVICES, print, gateway=True) as stack:
        store = open_store(config=stack.config)
        publish_toy_model(store, make_region_set(store, size=32))
        control = multiprocessing.get_context("spawn").Process(
            target=leak, args=(3 * MAX_GROWTH_MB / seconds,), daemon=True
        )
        control.start()
        headers = {"Authorization": f"Bearer {stack.token}"}
        with httpx2.Client(base_url=stack.url, headers=headers, timeout=120) as client:
            load = Load(client, phantom.read_bytes(), phantom.with_suffix(".geojson").read_bytes())
            began = sampled = time.monotonic()
            while time.monotonic() - began < seconds:
                load.round()
                if time.monotonic() - sampled >= seconds / SAMPLES:
                    sampled = time.monotonic()
                    roots = {each.name: each.child.pid for each in stack.processes}
                    memory.sample(roots | {LEAK: control.pid or 0})
                    report = _report(memory, load, time.monotonic() - began)
                    if out:
                        out.write_text(json.dumps(report, indent=1) + "\n")
        control.terminate()
    return report


def _report(memory: Memory, load: Load, seconds: float) -> dict[str, Any]:
    count = max(map(len, memory.samples.values()))
    grown = memory.growth(max(5, count // 2))
    control = [item["growth"] for name, item in grown.items() if name.startswith(LEAK)]
    own = [item["growth"] for name, item in grown.items() if not name.startswith(LEAK)]
    return {
        "hours": round(seconds / 3600, 3),
        "samples": count,
        "rounds": load.rounds,
        "images": load.images,
        "tiles": load.tiles,
        "most_growth_mb": max(own, default=0.0),
        "within_limit": max(own, default=0.0) <= MAX_GROWTH_MB,
        "limit_mb": MAX_GROWTH_MB,
        "leak_is_caught": max(control, default=0.0) > MAX_GROWTH_MB,
        "processes": grown,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{psutil.cpu_count()} CPU cores, {platform.machine()}",
    }


def main() -> int:
    """Run the soak, and say what grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.hours, options.out)
    print(json.dumps({key: report[key] for key in list(report)[:9]}, indent=1))
    return 0 if report["within_limit"] and report["leak_is_caught"] else 1


if __name__ == "__main__":
    sys.exit(main())
