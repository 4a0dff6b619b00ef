"""Datasets under a seeded schedule of faults: `python -m tests.chaos.run --faults 500 --seed 0`.

Real processes on a stack of their own. After each round, an independent checker compares what
is in the store with a run without faults.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from heterotissue.stack.servers import BUCKET
from shared.contracts.base import Request
from shared.contracts.deploy import deployments_prefix
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.tenants import LOCAL, TenantRecord, tenant_key
from shared.jobs import Ledger, run_job
from shared.jobs.stage import Stage
from shared.queue.tenants import tenant_ledger
from shared.queue.worker import Dispatcher
from shared.settings import Settings, settings
from shared.storage import DirectoryStore, Store
from tests.chaos.checker import check, leftovers
from tests.chaos.faults import FAULTS, KILLS, LEASE_SECONDS, Chaos, ChaosStack, inject
from tests.chaos.front import FRONT_FAULTS
from tests.chaos.serving import MODEL, TRITON_FAULTS, deploy
from tests.chaos.stage import LOG, SEGMENT, ChaosRequest, ChaosStage

TENANTS = ("", "acme")
LONGEST_SECONDS = 150
"""A job that has not ended this long after the last fault is stuck."""

SETTINGS = {
    "HTD_LEASE_SECONDS": str(LEASE_SECONDS),
    "HTD_RECONCILE_SECONDS": "1",
    "HTD_STOP_SECONDS": "1",
    "HTD_DEVICE": "cpu",
    "HTD_THREADS": "1",
    "REMAP_SIGTERM": "SIGQUIT",  # as in the images
}


@dataclass(frozen=True)
class Product:
    """A kind of dataset, and what makes it.

    Attributes:
        worker: module of the workers.
        request: makes the request for a dataset of a name.
        stage: makes the stage.
        prepare: writes what the stage reads into a store.
        gateway: whether the stack has a gateway, which can fail too.
        triton: whether a Triton server of the stack, which can fail too, makes the images.
    """

    worker: str
    request: Callable[[str], Request]
    stage: Callable[[], Stage[Any]]
    prepare: Callable[[Store], None]
    gateway: bool = False
    triton: bool = False

    @property
    def faults(self) -> dict[str, Callable[[Chaos], object]]:
        """Everything that can go wrong while it is made."""
        front = FRONT_FAULTS if self.gateway else {}
        return FAULTS | front | (TRITON_FAULTS if self.triton else {})


def _synthesize_stage() -> Stage[Any]:
    from services.synthesize.stage import SynthesizeStage  # it imports torch

    return SynthesizeStage()


def _publish_model(store: Store) -> None:
    from tests.models import publish_toy_model
    from tests.region_sets import make_region_set

    publish_toy_model(store, make_region_set(store, size=32))


TINY = Product(
    "tests.chaos.stage", lambda name: ChaosRequest(dataset=name), ChaosStage, lambda _: None
)
REAL = Product(
    "services.synthesize",
    lambda name: DatasetRequest(
        dataset=name, model="toy", images=24, shard_size=2, batch_size=2, exports=("coco",)
    ),
    _synthesize_stage,
    _publish_model,
    gateway=True,
)
SERVED = replace(REAL, gateway=False, triton=True)
PRODUCTS = {"tiny": TINY, "real": REAL, "served": SERVED}
"""Kinds of datasets: tiny pictures, images of a toy model, and such of a Triton server."""


@dataclass
class Injected:
    """A fault, and the datasets that were being made at that time."""

    name: str
    ended: float
    datasets: tuple[tuple[str, str], ...]


@dataclass
class Figures:
    """What came of the faults."""

    faults: list[Injected] = field(default_factory=list)
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    datasets: int = 0
    twice: int = 0
    go_on: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def report(self, seed: int, seconds: float, product: Product) -> dict[str, Any]:
        """Return the figures as plain JSON; real workers do not note what they have computed."""
        twice = self.twice if product is TINY else None
        kills = sum(fault.name in KILLS for fault in self.faults)
        rate = round(twice / kills, 3) if twice is not None and kills else None
        return {
            "faults": len(self.faults), "survived": self.survived, "lost": self.lost,
            "doubled": self.doubled, "datasets": self.datasets, "broken": self.broken,
            "kinds": dict(sorted(Counter(fault.name for fault in self.faults).items())),
            "interruptions": kills, "units_computed_twice": twice,
            "units_twice_per_interruption": rate,
            "seconds_to_go_on": _spread(self.go_on), "seconds_to_end": _spread(self.end),
            "seed": seed, "seconds": round(seconds), "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": f"{psutil.cpu_count()} CPU cores, {platform.machine()}",
        }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
    }


@contextmanager
def chaos(folder: Path, seed: int, workers: int, product: Product = TINY) -> Iterator[Chaos]:
    """A stack with a tenant beside the local one, and the chances of a seed."""
    (folder / "computed").mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    os.environ |= SETTINGS | {LOG: str(folder / "computed")}
    try:
        with ChaosStack(
            folder, product.worker, workers, seed, gateway=product.gateway, triton=product.triton
        ) as stack:
            ledgers = {tenant: tenant_ledger(stack.direct, tenant or LOCAL) for tenant in TENANTS}
            ledgers[""].store.put_json(tenant_key("acme"), TenantRecord())
            for ledger in ledgers.values():
                product.prepare(ledger.store)
            if product.triton:
                os.environ["HTD_TRITON_URL"] = stack.environment["HTD_TRITON_URL"]
                settings.cache_clear()
                for ledger in ledgers.values():
                    deploy(ledger)
            yield Chaos(stack, random.Random(seed), ledgers)  # noqa: S311 - faults, no secret
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def run_round(
    bench: Chaos, number: int, faults: list[str], figures: Figures, product: Product = TINY
) -> None:
    """Inject faults while datasets are made, wait for the end, and check.

    Args:
        bench: the stack.
        number: number of the round, which is part of the names of its datasets.
        faults: names of the faults, in their order.
        figures: receives what came of them.
        product: the kind of the datasets.
    """
    bench.jobs.clear()
    made: dict[str, tuple[str, Request]] = {}

    def supply() -> None:
        open_jobs = bench.open_jobs()
        for tenant, ledger in bench.ledgers.items():
            if not any(made[job][0] == tenant for job in open_jobs):
                request = product.request(f"round-{number}-{len(made)}")
                job = ledger.submit(request)
                made[job] = (tenant, request)
                bench.jobs[job] = (ledger, request)
                Dispatcher(bench.stack.direct).start(ledger, job)

    injected = []
    for name in faults:
        supply()
        bench.pause(0.2, 1.5)
        hit = tuple((made[job][0], _dataset(made[job][1])) for job in bench.open_jobs())
        inject(bench, product.faults, name)
        for job, (ledger, request) in bench.jobs.items():  # the fault may have asked for one
            made.setdefault(job, (ledger.owner, request))
        injected.append(Injected(name, time.time(), hit))
    last = injected[-1].ended
    while bench.open_jobs() and time.time() - last < LONGEST_SECONDS:
        bench.stack.restart_ended()
        time.sleep(0.1)
    figures.faults += injected
    if hit:
        figures.end.append(max(0.0, _newest(bench, list(made)) - last))
        figures.go_on.append(_next_marker(bench, list(made), last) - last)
    _judge(bench, made, injected, figures, product)


def _judge(
    bench: Chaos,
    made: dict[str, tuple[str, Request]],
    injected: list[Injected],
    figures: Figures,
    product: Product,
) -> None:
    bucket = bench.stack.folder / "s3" / BUCKET
    wrong: set[tuple[str, str]] = set()
    for tenant, request in made.values():
        dataset = _dataset(request)
        place = f"tenants/{tenant}" if tenant else ""
        images = int(request.model_dump()["images"])
        wanted = undisturbed(request, product, bench.ledgers[""].store)
        asked = bucket / place / "datasets" / dataset / "submission.json"
        if asked.is_file():  # of the gateway: when it was asked for
            wanted[asked.name] = hashlib.sha256(asked.read_bytes()).hexdigest()
        verdict = check(bucket, place, dataset, images, wanted)
        figures.lost += verdict.lost
        figures.doubled += verdict.doubled
        figures.datasets += 1
        if verdict.faults:
            wrong.add((tenant, dataset))
            figures.broken += [f"{tenant or 'local'}: {fault}" for fault in verdict.faults]
    left = [*leftovers(bucket), *(f"open {job}" for job in bench.open_jobs())]
    figures.broken += left
    figures.survived += sum(not left and not wrong.intersection(i.datasets) for i in injected)
    computed: Counter[str] = Counter()
    for path in (bench.stack.folder / "computed").glob("*.log"):
        computed.update(path.read_text().splitlines())
        path.unlink()
    remade = sum(fault.name == "deleted and made anew" for fault in injected)
    if not remade:
        figures.twice += sum(count - 1 for count in computed.values())


def undisturbed(
    request: Request, product: Product = TINY, deployed: Store | None = None
) -> dict[str, str]:
    """Make a dataset in this process without faults; return path below its folder → SHA-256.

    Args:
        request: asks for the dataset.
        product: its kind.
        deployed: store with the deployments on a Triton server, if that makes the images.
    """
    if isinstance(request, ChaosRequest):
        request = request.model_copy(update={"seconds": 0.0})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        ledger = Ledger(DirectoryStore(folder))
        log = os.environ.pop(LOG, None)
        product.prepare(ledger.store)
        if product.triton and deployed is not None:
            for key in deployed.list(deployments_prefix(MODEL)):
                ledger.store.put(key, deployed.get(key))
        config = Settings(threads=1, device="cpu")
        run_job(ledger, product.stage(), ledger.submit(request), config=config)
        if log is not None:
            os.environ[LOG] = log
        prefix = f"datasets/{_dataset(request)}/"
        return {
            key.removeprefix(prefix): hashlib.sha256(ledger.store.get(key)).hexdigest()
            for key in ledger.store.list(prefix)
        }


def _dataset(request: Request) -> str:
    return str(request.model_dump()["dataset"])


def _times(bench: Chaos, jobs: list[str]) -> list[float]:
    """Return when the markers and results of jobs were written."""
    bucket = bench.stack.folder / "s3" / BUCKET
    files = [
        path
        for job in jobs
        for pattern in (f"jobs/{job}/done/**/*.json", f"jobs/{job}/result.json")
        for root in (bucket, bucket / "tenants" / "acme")
        for path in root.glob(pattern)
    ]
    return [path.stat().st_mtime for path in files]


def _newest(bench: Chaos, jobs: list[str]) -> float:
    return max(_times(bench, jobs), default=time.time())


def _next_marker(bench: Chaos, jobs: list[str], since: float) -> float:
    return min((time for time in _times(bench, jobs) if time >= since), default=since)


def main(arguments: list[str] | None = None) -> int:
    """Run rounds of faults, and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--per-round", type=int, default=6)
    parser.add_argument("--segment", type=int, help="shards in a segment of a plan")
    parser.add_argument("--product", choices=PRODUCTS, default="tiny", help="kind of the datasets")
    parser.add_argument("--folder", type=Path, default=Path("out/chaos"))
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    if options.segment:
        os.environ[SEGMENT] = str(options.segment)
    figures, began = Figures(), time.monotonic()
    product = PRODUCTS[options.product]
    with chaos(options.folder, options.seed, options.workers, product) as bench:
        kinds = [name for name in product.faults if bench.stack.disk or not name.startswith("disk")]
        schedule = [
            name
            for _ in range(-(-options.faults // len(kinds)))
            for name in bench.rng.sample(kinds, len(kinds))
        ][: options.faults]
        for number, start in enumerate(range(0, len(schedule), options.per_round)):
            names = schedule[start : start + options.per_round]
            before = len(figures.broken)
            run_round(bench, number, names, figures, product)
            report = figures.report(options.seed, time.monotonic() - began, product)
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")
            print(
                f"{number}: {figures.survived} of {len(figures.faults)} survived, "
                f"last {names}, {figures.go_on[-1:]}, {figures.end[-1:]}",
                *figures.broken[before:],
                sep="\n   ",
                flush=True,
            )
    return 0 if figures.survived == len(figures.faults) else 1


if __name__ == "__main__":
    sys.exit(main())
