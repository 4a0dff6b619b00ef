"""How fast are images made?  python -m benchmarks.synthesis STORE MODEL [--student MODEL]

The results are ratios of speeds that are measured in one run:

- the default path to a plain diffusers pipeline with the same weights;
- Triton to the same sampler in this process;
- the whole service to Triton alone;
- two workers to one.

Measures also the Fréchet distances of these images, and the latency of one image while a dataset
is made. Maps and crops come from the val split; the stack is a real one in a temporary folder.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.computing import prepare
from shared.settings import settings

prepare(settings().threads)  # as a worker is: torch reads how its threads wait when it is loaded

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.batches import (
    BATCH,
    Batch,
    Make,
    PlainPipeline,
    batched,
    compose,
    rate,
    taking_turns,
    val_bank,
)
from heterotissue.running import Target, run_or_fail
from heterotissue.stack.supervisor import Stack
from heterotissue.study import IMAGENET_ENCODERS, counterparts
from services.evaluate.fidelity import FeatureSet, fidelity
from services.synthesize.generate import IN_FLIGHT
from shared.contracts.deploy import DeployRequest, served_model, served_prefix
from shared.contracts.models import ModelRecord
from shared.contracts.sampling import Sampling
from shared.contracts.tenants import LOCAL
from shared.diffusion.model_store import load_model
from shared.encoders import load_encoder
from shared.errors import JobError
from shared.models import find_version, read_model
from shared.serving.client import Server, TritonGenerator
from shared.serving.deployments import deployments
from shared.serving.priority import Priority
from shared.serving.protocol import served_name
from shared.storage import Store, open_store

STUB = Path(__file__).parent / "stub_sampler" / "model.py"


def distances(store: Store, model: ModelRecord, ways: dict[str, Make], most: int) -> dict[str, Any]:
    """Measure the Fréchet distance between each way's images and the regions of their maps.

    Args:
        store: holds the val split.
        model: record of the model.
        ways: name → function that makes images.
        most: largest number of images of each way.

    Returns:
        The encoder, the number of images, whether that is enough, and the distance of each way
        and of the floor (real against real).
    """
    bank = val_bank(store, model)
    made = compose(bank, model, min(most, len(bank)))
    slides = [(each.provenance.map_slide,) for each in made]
    encoder = load_encoder(IMAGENET_ENCODERS[0], store)
    size = model.size
    real = [
        bank.read(bank.numbers[at.map_region]).image[
            at.map_y : at.map_y + size, at.map_x : at.map_x + size
        ]
        for at in (each.provenance for each in made)
    ]
    features = {
        name: FeatureSet(
            encoder.encode(np.concatenate([make(batch) for batch in batched(made)]))[:, None],
            slides,
        )
        for name, make in ways.items()
    }
    found = fidelity(FeatureSet(encoder.encode(np.stack(real))[:, None], slides), features, 0)
    rows = {
        name: {"frechet": row.frechet, "interval": row.interval} for name, row in found.rows.items()
    }
    return {"encoder": IMAGENET_ENCODERS[0], "n": found.n, "reliable": found.reliable, "rows": rows}


def in_process(store: Store, model: ModelRecord, sampling: Sampling | None = None) -> Make:
    """Return a function that makes images in this process by the default path."""
    loaded = load_model(store, model.ref, "cpu")
    chosen = sampling or model.recipe.sampling
    return lambda batch: loaded.generate(batch.labels, batch.crops, batch.seeds, chosen)


def on_triton(url: str, store: Store, model: ModelRecord, priority: Priority) -> Make:
    """Return a function that makes images on a Triton server that serves the model."""
    number = deployments(store, model.model)[-1].number
    alone = priority is Priority.BULK
    generator = TritonGenerator(
        url, served_model(LOCAL, model.model), number, priority=priority, alone=alone
    )
    sampling = model.recipe.sampling
    return lambda batch: generator.generate(batch.labels, batch.crops, batch.seeds, sampling)


@contextmanager
def stack(source: Store, model: ModelRecord, *services: str) -> Iterator[Target]:
    """Start a stack with Triton, copy the model and its regions to it, and deploy the model."""
    with (
        tempfile.TemporaryDirectory(prefix="htd-speed-") as folder,
        Stack(Path(folder), ["deploy", *services], print, triton=True) as running,
    ):
        target = Target.of_config(running.config)
        for prefix in (model.ref.prefix, f"regions/{model.regions}/"):
            for key in source.list(prefix):
                target.store.put(key, source.get(key))
        run_or_fail(target, DeployRequest(model=model.model, version=model.version, number=1))
        yield target


def dataset_rate(target: Target, model: ModelRecord, images: int, name: str, **more: Any) -> float:
    """Make a dataset, and return its images per second from submission to end.

    Raises:
        JobError: images are missing, so the rate would be too high.
    """
    request = counterparts(name, model.ref, "val", images, **more)
    began = time.perf_counter()
    status = run_or_fail(target, request)
    seconds = time.perf_counter() - began
    if status.state != "done":
        raise JobError(f"dataset {name} ended {status.state}: {status.failed}")
    return images / seconds


def latency(
    bulk: Make, urgent: Make, batches: list[Batch], requests: int, pause: float
) -> dict[str, float]:
    """Measure the latency of interactive images on an idle server and while a dataset is made.

    Args:
        bulk: makes the batches of a dataset on the server.
        urgent: makes an interactive image on the same server.
        batches: inputs of the images.
        requests: number of interactive images.
        pause: seconds between an answer and the next request.

    Returns:
        Percentiles in seconds, their ratios of busy to idle, and `bulk_kept`: the dataset's rate
        beside interactive images as a share of its rate alone.
    """
    ones = [batches[number % len(batches)].row(number % BATCH) for number in range(requests)]
    stop, counts = threading.Event(), [0] * IN_FLIGHT

    def keep_busy(place: int) -> None:
        try:
            for batch in itertools.cycle(batches):
                if stop.is_set():
                    return
                counts[place] += len(bulk(batch))
        finally:
            stop.set()  # an error of one ends all: nothing may be measured beside an idle server

    def one(batch: Batch) -> float:
        began = time.perf_counter()
        urgent(batch)
        return time.perf_counter() - began

    def bulk_rate(during: Callable[[], None]) -> float:
        """Return the dataset's images per second during a call, from batch end to batch end."""
        before, began = next_batch()
        during()
        after, ended = next_batch()
        return (after - before) / (ended - began)

    def next_batch() -> tuple[int, float]:
        before = sum(counts)
        while sum(counts) == before and not stop.is_set():
            time.sleep(0.005)
        return sum(counts), time.perf_counter()

    idle = [one(batch) for batch in ones]
    busy: list[float] = []

    def interactive() -> None:
        for batch in ones:
            busy.append(one(batch))
            time.sleep(pause)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        tasks = [pool.submit(keep_busy, place) for place in range(IN_FLIGHT)]
        length = requests * (statistics.median(idle) + pause)
        alone = bulk_rate(lambda: time.sleep(length))
        beside = bulk_rate(interactive)
        stop.set()
    for task in tasks:
        task.result()
    quantiles = {
        f"{name}_p{share}": float(np.percentile(values, share))
        for name, values in (("idle", idle), ("busy", busy))
        for share in (50, 95)
    }
    return quantiles | {
        "pause": pause,
        "ratio_p50": quantiles["busy_p50"] / quantiles["idle_p50"],
        "ratio_p95": quantiles["busy_p95"] / quantiles["idle_p95"],
        "bulk_kept": beside / alone,
    }


def workers_ratio(source: Store, model: ModelRecord, images: int) -> dict[str, float]:
    """Measure the images per second of one worker and of two, with a stub instead of the sampler.

    Args:
        source: holds the model and its regions.
        model: record of the model, whose sampler the stub replaces.
        images: number of images of the dataset. It should be large, because a second worker does
            not speed up the planning and the end of a dataset.
    """
    rates = {}
    for name, services in (("one", ["synthesize"]), ("two", ["synthesize", "synthesize"])):
        with stack(source, model, *services) as target:
            name_there = served_name(served_model(LOCAL, model.model), 1, "sampler")
            target.store.put(f"{served_prefix(name_there)}1/model.py", STUB.read_bytes())
            Server(target.config.triton_url).client.load_model(name_there)
            # A shard for every worker.
            dataset_rate(target, model, len(services) * BATCH, "warm", shard_size=BATCH)
            rates[name] = dataset_rate(target, model, images, "dataset")
    return {**rates, "ratio": rates["two"] / rates["one"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("model", help="<name>/<version>")
    parser.add_argument("--student", help="<name>/<version> of a few-step student")
    parser.add_argument("--out", type=Path, default=Path("out/synthesis.json"))
    parser.add_argument("--batches", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256, help="of the service's dataset")
    parser.add_argument("--quality-images", type=int, default=512, help="of Fréchet distances")
    parser.add_argument("--stub-images", type=int, default=4096, help="of one worker against two")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    source = open_store(given.store)

    model = read_model(source, find_version(source, given.model))
    bank = val_bank(source, model)
    batches = batched(compose(bank, model, given.batches * BATCH))
    loaded = load_model(source, model.ref, "cpu").pipeline
    as_diffusers = copy.deepcopy(loaded.vae).to(memory_format=torch.contiguous_format)
    plain = PlainPipeline(as_diffusers, loaded.denoiser, FlowMatchEulerDiscreteScheduler())
    ways: dict[str, Make] = {"plain": plain, "default": in_process(source, model)}
    if given.student:
        student = read_model(source, find_version(source, given.student))
        ways["student"] = in_process(source, student)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {settings().threads} threads",
        "sampling": {
            name: read_model(source, find_version(source, each)).recipe.sampling.model_dump()
            for name, each in (("default", given.model), ("student", given.student))
            if each
        },
    }

    def keep(name: str, value: Any) -> None:
        result[name] = value
        print(json.dumps({name: value}), flush=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")

    rates = taking_turns(
        given.rounds,
        **{name: lambda make=make: rate(make, batches[:2]) for name, make in ways.items()},
    )
    keep("images_per_second", rates)
    keep("speedup_default", rates["default"] / rates["plain"])
    if given.student:
        keep("speedup_student", rates["student"] / rates["plain"])
    # What a student is held against: many steps of its teacher, which is never timed.
    judged = ways | {
        "teacher": in_process(source, model, model.recipe.sampling.model_copy(update={"steps": 20}))
    }
    frechet = distances(source, model, judged, given.quality_images)
    keep("frechet", frechet)
    against = {"default": "plain", "student": "teacher"}
    ratios = {
        name: frechet["rows"][name]["frechet"] / frechet["rows"][other]["frechet"]
        for name, other in against.items()
        if name in frechet["rows"]
    }
    keep("frechet_ratio", ratios)
    with stack(source, model, "synthesize") as target:
        url = target.config.triton_url
        served_here = on_triton(url, target.store, model, Priority.BULK)
        rates = taking_turns(
            given.rounds,
            process=lambda: rate(ways["default"], batches),
            triton=lambda: rate(served_here, batches, IN_FLIGHT),
        )
        keep("triton", rates)
        keep("triton_ratio", rates["triton"] / rates["process"])
        numbers = itertools.count()
        same = batched(compose(bank, model, given.images))
        rates = taking_turns(
            given.rounds,
            triton=lambda: rate(served_here, same, IN_FLIGHT),
            service=lambda: dataset_rate(target, model, given.images, f"dataset-{next(numbers)}"),
        )
        keep("service", rates)
        keep("service_ratio", rates["service"] / rates["triton"])
        urgent = on_triton(url, target.store, model, Priority.INTERACTIVE)
        keep("latency", latency(served_here, urgent, batches, requests=20, pause=5.0))
    found = workers_ratio(source, model, given.stub_images)
    keep("workers", found)
    keep("two_workers_ratio", found["ratio"])


if __name__ == "__main__":
    main()
