"""What the job engine costs by the number of shards: `make bench-scale`.

A stub stage, whose shards do nothing, is planned for 10² to 10⁶ shards. All but the last two
segments are marked as done through the engine's own code; then a worker runs what is left, against
a real Redis and a folder in memory whose calls are counted. A list counts once for each thousand
names, as S3 answers it. Each part runs in a process of its own, whose largest memory is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar

import psutil
import pyarrow as pa

from heterotissue.stack.supervisor import Stack
from services.synthesize.manifest import MANIFEST, write_manifest
from shared.contracts.base import Request
from shared.contracts.jobs import Marker
from shared.jobs import Context, Ledger, NoLeases, Plan, Reporter, Shard, Stage, execute
from shared.jobs.markers import put_sum
from shared.jobs.plan import SEGMENT
from shared.queue.redis_state import first_queue
from shared.queue.window import unit_of
from shared.queue.worker import Dispatcher
from shared.settings import Settings
from shared.storage import DirectoryStore, Stat, Store, StoreView
from shared.storage.formats import table_bytes

SIZES = (100, 1000, 10_000, 1_000_000)
MANIFEST_ROWS, ROWS_OF_SHARD = 10_000_000, 1000


class StubRequest(Request):
    """A job of `shards` shards that do nothing."""

    stage: ClassVar[str] = "stub"
    shards: int
    name: str = "stub"


class StubStage(Stage[StubRequest]):
    """The stage of `StubRequest`."""

    name: ClassVar[str] = "stub"
    request = StubRequest

    def plan(self, request: StubRequest, context: Context) -> Plan:
        shards = (
            Shard(id=f"shard-{n:07d}", args={"number": n, "start": 128 * n, "stop": 128 * n + 128})
            for n in range(request.shards)
        )
        return Plan(phases=(shards,))

    def run(self, request: StubRequest, shard: Shard, context: Context) -> dict[str, Any]:
        return summary(shard)

    def finish(
        self, request: StubRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        return {"images": sum(int(part["images"]) for part in done.values())}


def summary(shard: Shard) -> dict[str, Any]:
    """Return what a shard of a dataset says of itself."""
    return {"number": shard.args["number"], "images": 128, "refused": 0, "pixels": [40000] * 6}


SHARDS, MADE = "datasets/d/shards/", Stat(1, "made")
"""Where shards lie that are only said to be there, and what the store says of each."""


class CountedStore(StoreView):
    """A store whose calls are counted; the shards of a dataset are all in it."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()

    def put(self, key: str, data: bytes) -> str:
        self.calls["put"] += 1
        return super().put(key, data)

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        return super().get(key)

    def exists(self, key: str) -> bool:
        self.calls["exists"] += 1
        return super().exists(key)

    def delete(self, key: str) -> None:
        self.calls["delete"] += 1
        super().delete(key)

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        self.calls["get"] += 1
        return super().open(key, start)

    def local(self, key: str) -> Path:
        self.calls["get"] += 1
        return super().local(key)

    def put_file(self, key: str, path: Path) -> str:
        self.calls["put"] += 1
        return super().put_file(key, path)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.calls["get"] += 1
        return super().read_range(key, start, length)

    def stat(self, key: str) -> Stat:
        self.calls["exists"] += 1
        return MADE if key.startswith(SHARDS) else super().stat(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        return self._pages(super().list(prefix))

    def entries(self, prefix: str) -> Iterator[str]:
        return self._pages(super().entries(prefix))

    def _pages(self, names: Iterator[str]) -> Iterator[str]:
        number = -1
        for number, name in enumerate(names):
            self.calls["list"] += number % 1000 == 0
            yield name
        self.calls["list"] += number < 0


class Bench:
    """A job of some size in a folder, and the queue."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.store = CountedStore(DirectoryStore(folder / str(shards)))
        self.ledger = Ledger(self.store)
        self.config = Settings(threads=1, device="cpu")
        self.request = StubRequest(shards=shards)
        self.job = self.ledger.identify(self.request)

    def prepare(self) -> dict[str, Any]:
        """Plan the job, and mark all but the last two segments as done."""
        self.ledger.submit(self.request)
        began = time.perf_counter()
        self.execute(self.job, "plan")
        seconds = time.perf_counter() - began
        peak = peak_mib()
        plan = self.ledger.plan(self.job)
        assert plan is not None
        for segment in plan.segments(0)[:-2] if plan.total > SEGMENT else ():
            markers = {
                shard.id: Marker(
                    outputs={f"{SHARDS}{shard.id}.tar": "0" * 64},
                    tags={f"{SHARDS}{shard.id}.tar": MADE.tag}, result=summary(shard),
                    seconds=1.0, host=platform.node(),
                )
                for shard in plan.shards(segment)
            }  # fmt: skip
            put_sum(self.store.inner, self.job, segment, markers)
        return {"plan_seconds": round(seconds, 2), "plan_peak_mib": peak}

    def execute(self, job: str, unit: str) -> list[str]:
        """Run a unit."""
        return execute(
            self.ledger, StubStage(), job, unit, leases=NoLeases(), reporter=Reporter(),
            config=self.config,
        )  # fmt: skip

    def step(self, dispatcher: Dispatcher) -> tuple[str, str] | None:
        """Take a unit from the queues as a worker does, run it, and queue what follows."""
        redis = dispatcher.redis
        message: Any = redis.rpop(first_queue("stub")) or redis.rpop("stub")
        found = unit_of(message.encode()) if message else None
        if found is None:
            return None
        again = self.execute(*found)
        dispatcher.window.ended(dispatcher.ledgers(self.ledger), *found, again)
        return found

    def work(self) -> dict[str, Any]:
        """Run the shards that are left; count calls of the store and seconds per shard."""
        dispatcher = clean_dispatcher(self.config)
        dispatcher.start(self.ledger, self.job)
        self.store.calls.clear()
        began, busy, ran = time.perf_counter(), time.process_time(), 0
        while (found := self.step(dispatcher)) is not None and ran < 1500:
            ran += found[1].startswith("shard-")
            if found[1] == "finish":
                break
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        return {
            "shards_run": ran,
            "store_calls_per_shard": round(self.store.calls.total() / ran, 2),
            "calls": {name: round(n / ran, 3) for name, n in sorted(self.store.calls.items())},
            "milliseconds_per_shard": round(1000 * seconds / ran, 3),
            "cpu_milliseconds_per_shard": round(1000 * busy / ran, 3),
            "worker_peak_mib": peak_mib(),
        }

    def ask(self) -> dict[str, Any]:
        """Count the calls of a status poll and of a reconcile, halfway through a job."""
        self.store.calls.clear()
        self.ledger.status(self.job)
        status = self.store.calls.total()
        peak = peak_mib()
        dispatcher = clean_dispatcher(self.config)
        self.store.calls.clear()
        dispatcher.reconcile(self.ledger)
        filled = self.store.calls.total()
        self.store.calls.clear()
        dispatcher.reconcile(self.ledger)
        return {
            "status_calls": status, "status_peak_mib": peak, "reconcile_calls": filled,
            "reconcile_calls_window_full": self.store.calls.total(),
            "reconciler_peak_mib": peak_mib(),
        }  # fmt: skip

    def small_job_behind(self) -> dict[str, Any]:
        """Count the shards of this job that one worker runs before a small job's first one."""
        dispatcher = clean_dispatcher(self.config)
        dispatcher.start(self.ledger, self.job)
        small = self.ledger.submit(StubRequest(shards=1, name="64 images"))
        dispatcher.start(self.ledger, small)
        before = 0
        while (found := self.step(dispatcher)) is not None and found != (small, "shard-0000000"):
            before += found[0] == self.job
        return {"shards_before_a_small_job": before}

    def finish(self) -> dict[str, Any]:
        """Run what is left, and finish the job."""
        for unit in self.ledger.waiting(self.job):
            self.execute(self.job, unit)
        self.store.calls.clear()
        began = time.perf_counter()
        list(self.ledger.waiting(self.job))
        self.execute(self.job, "finish")
        status = self.ledger.status(self.job)
        assert status.state == "done", status
        return {
            "finish_seconds": round(time.perf_counter() - began, 1),
            "finish_calls": self.store.calls.total(),
            "finish_peak_mib": peak_mib(),
        }


class RowsStore(StoreView):
    """A store that gives the same rows for every shard of a dataset."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        row = {field.name: None for field in MANIFEST} | {"map_region": "slide-1/000017"}
        row |= {"image": "00000001.png", "image_sha256": "0" * 64, "mask_sha256": "1" * 64}
        self.rows = table_bytes(pa.Table.from_pylist([row] * ROWS_OF_SHARD, schema=MANIFEST))

    def get(self, key: str) -> bytes:
        return self.rows


def manifest(folder: Path) -> dict[str, Any]:
    """Write a manifest of ten million rows."""
    began = time.perf_counter()
    shards = tuple(f"shards/{n:06d}.tar" for n in range(MANIFEST_ROWS // ROWS_OF_SHARD))
    write_manifest(RowsStore(DirectoryStore(folder / "manifest")), "d", shards)
    return {
        "manifest_rows": MANIFEST_ROWS, "manifest_peak_mib": peak_mib(),
        "manifest_seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def clean_dispatcher(config: Settings) -> Dispatcher:
    """Return a dispatcher with empty queues."""
    dispatcher = Dispatcher(config)
    dispatcher.redis.flushdb()
    return dispatcher


def peak_mib() -> int:
    """Return the largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def part(name: str, folder: Path, shards: int) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", name]
    command += ["--folder", str(folder), "--shards", str(shards)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    print(shards, name, answer.decode().strip(), flush=True)
    found: dict[str, Any] = json.loads(answer)
    return found


def measure(folder: Path, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Measure the engine at some sizes, and return the figures."""
    rows: dict[str, dict[str, Any]] = {}
    for shards in sizes:
        row = part("prepare", folder, shards) | part("ask", folder, shards)
        row |= part("small_job_behind", folder, shards) | part("work", folder, shards)
        rows[str(shards)] = row | part("finish", folder, shards)
    least, thousand, most = rows[str(sizes[0])], rows[str(sizes[1])], rows[str(sizes[-1])]
    ten_million = part("manifest", folder, 0)
    peaks = [value for name, value in (most | ten_million).items() if name.endswith("_peak_mib")]

    def ratio(name: str, before: dict[str, Any]) -> float:
        return round(float(most[name]) / float(before[name]), 3)

    return {
        "by_shards": rows,
        "store_calls_per_shard": {n: row["store_calls_per_shard"] for n, row in rows.items()},
        "cpu_seconds_per_shard_most_to_1000": ratio("cpu_milliseconds_per_shard", thousand),
        "status_calls_most_to_least": ratio("status_calls", least),
        "reconcile_calls_most_to_least": ratio("reconcile_calls", least),
        "largest_memory_mib": max(peaks),
        "shards_before_a_small_job": most["shards_before_a_small_job"],
        **ten_million,
    }


def write_figures(out: Path, name: str, figures: dict[str, Any]) -> None:
    """Add figures to those under a name in a file, with the date and the machine."""
    known = json.loads(out.read_text()) if out.exists() else {}
    known[name] = known.get(name, {}) | figures
    known[name] |= {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{psutil.cpu_count()} CPU cores, {platform.machine()}",
    }
    out.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shards", type=int, default=SIZES[-1], help="largest number of shards")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    options = parser.parse_args()
    if options.part == "manifest":
        print(json.dumps(manifest(options.folder)))
    elif options.part:
        print(json.dumps(getattr(Bench(options.folder, options.shards), options.part)()))
    else:
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as name,
            Stack(Path(name) / "stack", [], lambda _: None) as stack,
        ):
            os.environ["HTD_BROKER_URL"] = stack.config.broker_url.get_secret_value()
            sizes = tuple(size for size in SIZES if size <= options.shards)
            engine = measure(Path(name), sizes)
        write_figures(options.out, "engine", engine)


if __name__ == "__main__":
    main()
