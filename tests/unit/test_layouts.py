"""Sampled layouts: the grid of a label map, and datasets of sampled maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.synthesize.stage import SynthesizeStage
from services.train.stage import TrainStage
from shared.contracts.recipe import DenoiserRecipe, LayoutRecipe, Recipe, VaeRecipe
from shared.contracts.synthesize import DatasetRequest, MapSource
from shared.contracts.train import TrainRequest
from shared.datasets.samples import load_dataset, read_shard
from shared.diffusion.layouts import FOLDER, make_layouts, sample_layouts, to_grid, to_labels
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

CONFIG = Settings(threads=1, device="cpu")


def test_a_map_of_whole_cells_is_its_grid() -> None:
    cells = np.random.default_rng(0).integers(3, size=(2, 8, 8))
    labels = cells.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    grid = to_grid(torch.from_numpy(labels), 3, 8)
    assert grid.shape == (2, 3, 8, 8)
    assert ((grid == 1).sum(1) == 1).all()
    assert (to_labels(grid, 8) == cells).all()
    half = to_grid(torch.from_numpy(labels), 3, 4)
    assert half.sum(1) == pytest.approx(-1)  # 2 · 1 - 3: the shares of a cell sum to 1


def test_sampled_maps_show_only_asked_labels_and_follow_their_seed() -> None:
    torch.manual_seed(0)
    model = make_layouts(LayoutRecipe(side=8, channels=(16,)), 3).eval()
    shares = [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]
    both = sample_layouts(model, shares, [1, 2], 24)
    assert both.shape == (2, 24, 24)
    assert both.dtype == np.uint8
    assert set(np.unique(both[0])) <= {0, 1}
    assert set(np.unique(both[1])) <= {1, 2}
    again = sample_layouts(model, shares[1:], [2], 24)
    assert (again[0] == both[1]).mean() > 0.99  # rounding depends on the batch
    assert (sample_layouts(model, shares[:1], [3], 24) != both[:1]).any()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A model with a layout model, trained for three steps in two segments."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    recipe = Recipe(
        name="toy",
        size=32,
        segment_steps=2,
        vae=VaeRecipe(channels=(8, 16), latent_channels=4, crop=32, steps=1),
        denoiser=DenoiserRecipe(channels=(32,), attention=(False,), condition_channels=32, steps=1),
        layouts=LayoutRecipe(side=8, channels=(16,), steps=3, batch_size=4),
    )
    make_region_set(store)
    request = TrainRequest(run="r", model="m", regions="toy", recipe=recipe)
    ledger = Ledger(store)
    status = run_job(ledger, TrainStage(), ledger.submit(request), config=CONFIG)
    assert status.state == "done", status.failed
    return store


def test_a_dataset_of_sampled_maps_copies_no_layout(store: DirectoryStore) -> None:
    ledger = Ledger(store)
    request = DatasetRequest(
        dataset="d", model="m", images=6, steps=1, maps=MapSource(sampled=True), shard_size=3
    )
    status = run_job(ledger, SynthesizeStage(), ledger.submit(request), config=CONFIG)
    assert status.state == "done", status.failed
    assert status.result["distinct_maps"] == 6
    samples = [
        sample
        for shard in load_dataset(store, "d").shards
        for sample in read_shard(store.get(shard))
    ]
    assert all(sample.provenance.sampled_map for sample in samples)
    assert all(f"{FOLDER}/" in " ".join(sample.provenance.weights) for sample in samples)


def test_a_model_without_a_layout_model_refuses_to_sample_maps(store: DirectoryStore) -> None:
    publish_toy_model(store, make_region_set(store, name="other"))
    ledger = Ledger(store)
    request = DatasetRequest(dataset="e", model="toy", images=2, maps=MapSource(sampled=True))
    status = run_job(ledger, SynthesizeStage(), ledger.submit(request), config=CONFIG)
    assert status.state == "failed"
    assert "recipe.layouts.steps" in status.failed["plan"]


def test_a_grid_must_fit_its_levels() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        LayoutRecipe(side=30, channels=(16, 32, 48))
