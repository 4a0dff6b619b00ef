"""Training on two processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from services.gateway.stack import free_port
from shared.contracts.train import TrainRequest
from shared.diffusion.model_store import load_model
from shared.jobs import Ledger
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


def test_two_processes_train_and_publish_one_model(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    done = torchrun(store, job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ledger.status(job).state == "done"
    assert load_model(store, "m", "1", "cpu").record.regions == "toy"


def test_a_failing_segment_ends_all_processes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    store.delete("regions/toy/slide-a.tar")
    done = torchrun(store, job)
    assert done.returncode != 0
    assert "slide-a.tar" in ledger.errors(job)["vae-00000002"]
