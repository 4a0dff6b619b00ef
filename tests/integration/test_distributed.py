"""Training on two processes under torchrun."""

from __future__ import annotations

import json
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
from tests.unit.test_train import RECIPE


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


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    two, one = (DirectoryStore(tmp_path / name) for name in ("two", "one"))
    for store, size in ((two, 2), (one, 4)):
        make_region_set(store)
        sizes = {"batch_size": size}
        recipe = RECIPE.model_copy(
            update={
                "vae": RECIPE.vae.model_copy(update=sizes),
                "denoiser": RECIPE.denoiser.model_copy(update=sizes),
            }
        )
        ledger = Ledger(store)
        job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=recipe, model="m"))
        if store is two:
            done = torchrun(store, job)
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            run_job(ledger, TrainStage(), job, config=Settings(threads=1, device="cpu"))
        assert ledger.status(job).state == "done"
        assert load_model(store, ModelRef("m"), "cpu").record.regions == "toy"
    for kind in ("vae", "denoiser"):
        assert len(losses(two, kind)) >= 3
        assert losses(two, kind) == pytest.approx(losses(one, kind), rel=1e-3)


def test_a_failing_segment_ends_all_processes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    store.delete("regions/toy/slide-a.tar")
    done = torchrun(store, job)
    assert done.returncode != 0
    assert "slide-a.tar" in ledger.errors(job)["vae-00000002"]
