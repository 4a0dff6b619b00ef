"""What a whole cohort costs, slide by slide: a part of `make bench-scale`.

    regions   store calls before a shard's first image, by the number of slides of its region set
    slides    ingest → embed → cluster → regions of small pyramids: calls and processor seconds of
              the last tenth of the slides against the first, and of all against a tenth as many
    killed    the same by processes of `htd work`, half of which are killed by and by: the bytes,
              and the time
    shared    two processes of `htd work` on one slide against one

The encoder is a stub: mean colours, and in `shared` a pause for each patch, as of a GPU that does
not load the CPUs. `python -m benchmarks.cohort slides --slides 1000` runs a part.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import psutil

import services.synthesize.stage
from benchmarks.scale import CountedStore, write_figures
from benchmarks.small_cohorts import (
    CONFIG,
    PATCH,
    PAUSE,
    STAGES,
    requests,
    small_slides,
    write_slide,
)
from services.ingest.stage import IngestStage
from services.synthesize.stage import SynthesizeStage
from shared.computing import prepare
from shared.contracts.base import Request
from shared.contracts.ingest import SlideSource
from shared.contracts.synthesize import DatasetRequest
from shared.errors import HandedBackError
from shared.imaging.region_index import write_region_index
from shared.jobs import Ledger, NoLeases, Reporter, execute, run_job, work
from shared.storage import DirectoryStore, Store, sha256
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.texture_slides import texture_slide

AHEAD = 8
"""Units that are asked for at a time, as the window of a queue does."""


def processor_seconds() -> float:
    """Return the processor seconds of this process and of its children so far."""
    while True:
        children = psutil.Process().children(recursive=True)
        try:  # each of them counts its own children that have ended
            alive = sum(sum(child.cpu_times()[:4]) for child in children)
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile, and now counts as its parent's
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime + alive


class Cost(NamedTuple):
    """What a unit cost: processor seconds and store calls, for how many slides."""

    seconds: float
    calls: int
    slides: int


class Costs:
    """What the units of jobs cost, in the order in which they ran."""

    def __init__(self, store: CountedStore) -> None:
        self.store, self.ledger = store, Ledger(store)
        self.of: dict[str, list[Cost]] = {}

    def run(self, request: Request) -> None:
        """Run a job to its end; its units are counted by their kind."""
        stage = STAGES[request.stage]()
        self._note(f"{request.stage} submit", lambda: self.ledger.submit(request))
        job = self.ledger.identify(request)
        while units := self._next(request.stage, job):
            for unit in units:
                kind = unit.partition("-")[0] if request.stage == "cluster" else "slide"
                kind = unit if unit in ("plan", "fit", "finish") else kind
                run = partial(
                    execute, self.ledger, stage, job, unit, leases=NoLeases(), reporter=Reporter(),
                    config=CONFIG,
                )  # fmt: skip
                self._note(f"{request.stage} {kind}", run, self._slides(job, kind, unit))
        assert self.ledger.status(job).state == "done", self.ledger.status(job)

    def _next(self, stage: str, job: str) -> list[str]:
        found: list[str] = []
        self._note(f"{stage} next", lambda: found.extend(islice(self.ledger.waiting(job), AHEAD)))
        return found

    def _slides(self, job: str, kind: str, unit: str) -> int:
        """Return the number of slides of a unit; units of assignments have several."""
        plan = self.ledger.snapshot(job).plan if kind == "assign" else None
        return len(plan.find(unit)[1].args["slides"]) if plan else 1  # type: ignore[arg-type]

    def _note(self, kind: str, call: Callable[[], object], slides: int = 1) -> None:
        calls, busy = self.store.calls.total(), processor_seconds()
        call()
        cost = Cost(processor_seconds() - busy, self.store.calls.total() - calls, slides)
        self.of.setdefault(kind, []).append(cost)

    def tenths(self, count: int) -> dict[str, tuple[Cost, Cost]]:
        """Return what the first and the last tenth of the slides cost, by kind of unit."""
        found = {}
        for kind, costs in self.of.items():
            if sum(cost.slides for cost in costs) == count and not kind.endswith("next"):
                found[kind] = _first(costs, count // 10), _first(costs[::-1], count // 10)
        return found

    def per_slide(self, slides: int) -> dict[str, float]:
        """Return what all units cost together, for each of the slides."""
        every = self.whole().values()
        return {name: sum(each[name] for each in every) / slides for name in ("seconds", "calls")}

    def whole(self) -> dict[str, dict[str, float]]:
        """Return what all units of a kind cost."""
        return {
            kind: {
                "units": len(costs), "seconds": round(sum(cost.seconds for cost in costs), 2),
                "calls": sum(cost.calls for cost in costs),
            }
            for kind, costs in self.of.items()
        }  # fmt: skip


def _first(costs: Sequence[Cost], slides: int) -> Cost:
    """Return what the first units cost together, up to a number of slides."""
    covered = accumulate(cost.slides for cost in costs)
    count = 1 + sum(reached < slides for reached in covered)
    seconds, calls, number = zip(*costs[:count], strict=True)
    return Cost(sum(seconds), sum(calls), sum(number))


def _growth(tenths: Sequence[tuple[Cost, Cost]], figure: Literal["seconds", "calls"]) -> float:
    """Return the cost per slide of the last tenth ÷ that of the first, over kinds of units."""
    first, last = (
        sum(float(getattr(tenth[at], figure)) / tenth[at].slides for tenth in tenths)
        for at in (0, 1)
    )
    return round(last / first, 3)


def slides(folder: Path, count: int, _: float) -> dict[str, Any]:
    """Take cohorts of `count` slides, and of a tenth as many, through all stages."""
    found: dict[int, Costs] = {}
    prepare(CONFIG.threads)
    for size in (max(20, count // 10), count):
        sources = small_slides(folder / f"slides-{size}", size)
        costs = Costs(CountedStore(DirectoryStore(folder / f"store-{size}")))
        for request in requests(sources):
            costs.run(request)
        found[size] = costs
    few, many = (costs.per_slide(size) for size, costs in sorted(found.items()))
    tenths = found[count].tenths(count)
    return {
        "slides": count,
        "processor seconds per slide": round(many["seconds"], 4),
        "store calls per slide": round(many["calls"], 2),
        "last tenth ÷ first, processor seconds": _growth(list(tenths.values()), "seconds"),
        "last tenth ÷ first, store calls": _growth(list(tenths.values()), "calls"),
        "last tenth ÷ first by kind, processor seconds": {
            kind: _growth([tenth], "seconds") for kind, tenth in tenths.items()
        },
        "per slide ÷ that of a tenth as many slides, processor seconds": round(
            many["seconds"] / few["seconds"], 3
        ),
        "per slide ÷ that of a tenth as many slides, store calls": round(
            many["calls"] / few["calls"], 3
        ),
        "by kind of unit": found[count].whole(),
    }


def digests(store: Store) -> dict[str, str]:
    """Return the SHA-256 of every result of a cohort by its key."""
    names = ("slides/", "patches/", "cohorts/", "features/", "clusters/", "regions/")
    return {key: sha256(store.get(key)) for name in names for key in store.list(name)}


class Workers:
    """Processes that work on the jobs of a store, as `htd work` does."""

    def __init__(self, folder: Path, number: int, pause: float = 0.0) -> None:
        self.folder, self.pause = folder, pause
        self.running: dict[str, list[subprocess.Popen[bytes]]] = {}
        self.number = number

    def start(self, stage: str) -> None:
        """Start all workers of a stage."""
        self.running[stage] = [self._start(stage) for _ in range(self.number)]

    def _start(self, stage: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.cohort", "work", "--stage", stage]
        command += ["--folder", str(self.folder)]
        environment = os.environ | {PAUSE: str(self.pause)}
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def kill_half(self, stage: str) -> int:
        """Kill half of the workers as a power cut would, start as many again; return how many."""
        own = self.running[stage]
        killed = own[: max(1, len(own) // 2)]
        for process in killed:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        own[:] = own[len(killed) :] + [self._start(stage) for _ in killed]
        return len(killed)

    def stop(self) -> None:
        """Kill all workers."""
        for process in [each for every in self.running.values() for each in every]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def work_through(
    folder: Path, each: list[Request], workers: int, kill_seconds: float
) -> tuple[float, int]:
    """Let processes work through jobs one after another; return the seconds, and the kills."""
    ledger, began, kills = Ledger(DirectoryStore(folder)), time.monotonic(), 0
    running = Workers(folder, workers)
    try:
        for request in each:
            job = ledger.submit(request)
            running.start(request.stage)
            killed = time.monotonic()
            while ledger.is_open(job):
                time.sleep(0.2)
                if kill_seconds and time.monotonic() - killed >= kill_seconds:
                    kills += running.kill_half(request.stage)
                    killed = time.monotonic()
            assert ledger.status(job).state == "done", ledger.status(job)
            running.stop()
            running.running.clear()
    finally:
        running.stop()
    return time.monotonic() - began, kills


def killed(folder: Path, count: int, kill_seconds: float) -> dict[str, Any]:
    """Take a cohort through all stages twice, once while workers are killed."""
    each = requests(small_slides(folder / "slides", count))
    calm, _ = work_through(folder / "calm", each, 2, 0)
    hurt, kills = work_through(folder / "hurt", each, 2, kill_seconds)
    same = digests(DirectoryStore(folder / "calm")) == digests(DirectoryStore(folder / "hurt"))
    return {
        "slides": count, "workers": 2, "kills": kills, "seconds between kills": kill_seconds,
        "lease seconds": CONFIG.lease_seconds, "seconds": round(calm, 1),
        "seconds with kills": round(hurt, 1), "time ÷ without kills": round(hurt / calm, 3),
        "same bytes": same, "load": os.getloadavg()[0],
    }  # fmt: skip


def shared(folder: Path, patches: int, _: float) -> dict[str, Any]:
    """Encode a large slide by one process, then by two; the encoder pauses 1 ms per patch."""
    side = int(np.ceil(patches**0.5)) * PATCH
    look = texture_slide(2048, 0)[0][64:-64, 64:-64]
    times = -(-side // len(look))
    write_slide(folder / "large.tiff", np.tile(look, (times, times, 1))[:side, :side])
    source = SlideSource(slide="large", source=str(folder / "large.tiff"), mpp=1.0, split="train")
    ingest, embed, _cluster = requests((source,))
    seconds: dict[int, float] = {}
    for number in (1, 2):
        store = DirectoryStore(folder / f"by-{number}")
        ledger = Ledger(store)
        run_job(ledger, IngestStage(), ledger.submit(ingest), config=CONFIG)
        workers = Workers(folder / f"by-{number}", number, pause=0.001)
        workers.start("embed")
        try:
            while len(list(store.list("ready/"))) < number:
                time.sleep(0.1)
            began, job = time.monotonic(), ledger.submit(embed)
            while ledger.is_open(job):
                time.sleep(0.05)
        finally:
            workers.stop()
        seconds[number] = time.monotonic() - began
    status = ledger.status(job)
    return {
        "patches": status.result["patches"] if status.result else 0,
        "encoder": "pauses 1 ms per patch, as a network on a GPU; decoding is real",
        "seconds of one": round(seconds[1], 1), "seconds of two": round(seconds[2], 1),
        "one ÷ two": round(seconds[1] / seconds[2], 3), "load": os.getloadavg()[0],
    }  # fmt: skip


def first_image(folder: Path, count: int) -> int:
    """Return the store calls of a fresh process before the first image of a shard."""
    store = CountedStore(DirectoryStore(folder / str(count)))
    names = {f"slide-{n:05d}": "train" for n in range(count)}
    record = make_region_set(store.inner, "toy", names, regions=2, size=32)  # type: ignore[arg-type]
    write_region_index(store.inner, record)
    publish_toy_model(store.inner, record)
    request = DatasetRequest(dataset="d", model="toy", version="1", images=4, batch_size=1)
    ledger = Ledger(store)
    job = ledger.submit(request)

    def run(unit: str) -> None:
        execute(
            ledger, SynthesizeStage(), job, unit, leases=NoLeases(), reporter=Reporter(),
            config=CONFIG,
        )  # fmt: skip

    run("plan")
    unit = next(ledger.waiting(job))
    command = [sys.executable, "-m", "benchmarks.cohort", "first-image", "--folder"]
    command += [str(folder / str(count)), "--job", job, "--unit", unit]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[-1])


def count_to_first_image(folder: Path, job: str, unit: str) -> None:
    """Print the store calls of this process until the condition of the first image is there."""
    store = CountedStore(DirectoryStore(folder))

    def first(*given: Any) -> NoReturn:
        next(given[3])  # the batches, which are composed when they are asked for
        print(store.calls.total(), flush=True)
        raise HandedBackError

    services.synthesize.stage.generate_batches = first  # type: ignore[attr-defined,assignment]
    try:
        execute(
            Ledger(store), SynthesizeStage(), job, unit, leases=NoLeases(), reporter=Reporter(),
            config=CONFIG,
        )  # fmt: skip
    except HandedBackError:
        return


def regions(folder: Path, count: int, _: float) -> dict[str, Any]:
    """Count the store calls before a first image, of a region set of few and of many slides."""
    few, many = (first_image(folder, slides) for slides in (10, count))
    return {"slides": count, "calls": many, "calls of 10 slides": few, "÷": round(many / few, 3)}


PARTS = {"regions": (regions, 1000), "slides": (slides, 10_000), "killed": (killed, 2000),
         "shared": (shared, 50_000)}  # fmt: skip
"""Part → its function, and the number of slides; of patches for `shared`."""


def work_on(folder: Path, stage: str) -> None:
    """Work on the jobs of a stage until the process is killed."""
    store = DirectoryStore(folder)
    prepare(CONFIG.threads)
    store.put(f"ready/{os.getpid()}", b"")
    work(Ledger(store), STAGES[stage](), CONFIG, until_idle=False, poll_seconds=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=[*PARTS, "work", "first-image"])
    parser.add_argument("--slides", type=int, help="number of slides")
    parser.add_argument("--patches", type=int, default=50_000, help="of the slide of `shared`")
    parser.add_argument("--kill-seconds", type=float, default=60.0, help="seconds between kills")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage")
    parser.add_argument("--job")
    parser.add_argument("--unit")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    options = parser.parse_args()
    if options.part == "work":
        work_on(options.folder, options.stage)
    elif options.part == "first-image":
        count_to_first_image(options.folder, options.job, options.unit)
    else:
        for name in [options.part] if options.part else PARTS:
            function, count = PARTS[name]
            with tempfile.TemporaryDirectory(prefix="htd-cohort-", dir=options.folder) as folder:
                size = options.patches if name == "shared" else options.slides or count
                found = function(Path(folder), size, options.kill_seconds)
            print(name, json.dumps(found, indent=1, ensure_ascii=False), flush=True)
            write_figures(options.out, "cohort", {name: found})


if __name__ == "__main__":
    main()
