"""Training on two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from heterotissue.stack.servers import free_port
from services.train.stage import TrainStage
from shared.contracts.models import ModelRef
from shared.contracts.train import TrainRequest
from shared.diffusion.model_store import load_model
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.region_sets import make_region_set
from tests.toy_training import RECIPE, outputs
from tests.training_processes import train_in_two


def torchrun(store: DirectoryStore, job: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(free_port()), "-m", "services.train.distributed", job,
        "--store", str(store.root),
    ]  # fmt: skip
    environment = os.environ | {"HTD_THREADS": "1", "HTD_MAX_FAILURES": "1", "HTD_DEVICE": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def losses(store: DirectoryStore, kind: str) -> list[float]:
    parts = [store.get(key) for key in store.list("training/r/metrics/") if f"/{kind}" in key]
    return [json.loads(line)["loss"] for part in parts for line in part.splitlines()]


def submit(store: DirectoryStore, batch_size: int) -> str:
    make_region_set(store)
    sizes = {"batch_size": batch_size}
    recipe = RECIPE.model_copy(
        update={
            "vae": RECIPE.vae.model_copy(update=sizes | {"decoder_steps": 0}),
            "denoiser": RECIPE.denoiser.model_copy(update=sizes),
        }
    )
    request = TrainRequest(run="r", regions="toy", recipe=recipe, model="m")
    return Ledger(store).submit(request)


def test_two_processes_train_as_one_and_go_on_after_an_end(tmp_path: Path) -> None:
    """One process has twice the batch; one of the two is told to end in a segment."""
    two, told, one = (DirectoryStore(tmp_path / name) for name in ("two", "told", "one"))
    jobs = {store: submit(store, size) for store, size in ((two, 2), (told, 2), (one, 4))}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training_processes"])
    ports = [free_port() for _ in range(3)]
    both = [(store.root, jobs[store]) for store in (two, told)]
    processes = [context.Process(target=train_in_two, args=(rank, *both, ports)) for rank in (0, 1)]
    for process in processes:
        process.start()
    run_job(Ledger(one), TrainStage(), jobs[one], config=Settings(threads=1, device="cpu"))
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    for store in jobs:
        assert Ledger(store).status(jobs[store]).state == "done"
        assert load_model(store, ModelRef("m", "1"), "cpu").record.regions == "toy"
    for kind in ("vae", "denoiser"):
        assert len(losses(two, kind)) >= 3
        assert losses(two, kind) == pytest.approx(losses(one, kind), rel=1e-3)
    assert outputs(told) == outputs(two)


def test_a_failing_segment_ends_all_processes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    store.delete("regions/toy/slide-a.tar")
    done = torchrun(store, job)
    assert done.returncode != 0
    assert "slide-a.tar" in ledger.errors(job)["vae-00000002"]
