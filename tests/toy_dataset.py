"""A toy dataset, made of a toy model of a small region set."""

from __future__ import annotations

from pathlib import Path

from services.synthesize.stage import SynthesizeStage
from shared.contracts.base import Split
from shared.contracts.synthesize import DatasetRequest
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

CONFIG = Settings(threads=1, device="cpu")


def make_store(folder: Path, splits: dict[str, Split] | None = None) -> DirectoryStore:
    """Make a store with the region set and the model `toy`, and dataset `d` of 9 images."""
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store, splits=splits))
    synthesize(store, DatasetRequest(dataset="d", model="toy", images=9, steps=1))
    return store


def synthesize(store: DirectoryStore, request: DatasetRequest) -> None:
    """Make a dataset, in the place of one of its name."""
    ledger = Ledger(store)
    job = ledger.submit(request, replace=True)
    assert run_job(ledger, SynthesizeStage(), job, config=CONFIG).result
