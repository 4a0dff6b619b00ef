"""Sampled layouts: the grid of a label map, and datasets of sampled maps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import tifffile
import torch
from torch.nn.functional import avg_pool2d

from services.field.stage import FieldStage
from services.synthesize.stage import SynthesizeStage
from services.train.stage import TrainStage
from shared.contracts.field import WORK, FieldRecord, FieldRequest, SampledMap, field_key
from shared.contracts.models import ModelRef
from shared.contracts.recipe import DenoiserRecipe, LayoutRecipe, Recipe, VaeRecipe
from shared.contracts.synthesize import DatasetRequest, MapSource
from shared.contracts.train import TrainRequest
from shared.datasets.field_inputs import layout_shares
from shared.datasets.samples import load_dataset, read_shard
from shared.diffusion.field_layouts import LayoutField
from shared.diffusion.layouts import (
    FOLDER,
    STEPS,
    make_layouts,
    sample_layouts,
    to_grid,
    to_labels,
)
from shared.diffusion.model_store import load_layouts
from shared.errors import InputError
from shared.jobs import Ledger, Reporter, execution, run_job
from shared.models import read_model
from shared.seeds import image_seed
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set

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
    field = FieldRequest(field="e", model="toy", sampled=SampledMap(width=64, height=64))
    status = run_job(ledger, FieldStage(), ledger.submit(field), config=CONFIG)
    assert "recipe.layouts.steps" in status.failed["plan"]


class Cancelling(Reporter):
    """Cancels a job after some steps of its label map, and notes all of them."""

    def __init__(self, ledger: Ledger, after: int) -> None:
        self.ledger, self.after, self.steps = ledger, after, set[int]()

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        if note == "steps of the label map":
            self.steps.add(done)
            if done == self.after:
                self.ledger.cancel(job)


def test_a_sampled_map_goes_on_after_its_last_step(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "CANCEL_CHECK_SECONDS", 0)
    ledger = Ledger(store)
    maps, seen = [], []
    for name, stops in (("calm", ()), ("hurt", (3, 8))):
        request = FieldRequest(
            field=name, model="m", sampled=SampledMap(width=64, height=96), steps=1
        )
        for after in (*stops, -1):
            reporter = Cancelling(ledger, after)
            status = run_job(
                ledger, FieldStage(), ledger.submit(request), reporter=reporter, config=CONFIG
            )
            seen.append(min(reporter.steps))
        assert status.state == "done", status.failed
        maps.append(tifffile.imread(store.local(field_key(name, "labels.tiff"))))
    np.testing.assert_array_equal(*maps)
    assert seen == [0, 0, 3, 8]
    assert not list(store.list(WORK))


def test_a_grid_must_fit_its_levels() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        LayoutRecipe(side=30, channels=(16, 32, 48))


class Noiseless:
    """Takes the noise that it sees, smoothed, for a map of classes 1 and 2 of the asked shares."""

    device = torch.device("cpu")
    config: ClassVar[dict[str, int]] = {"sample_size": 16}

    def __call__(self, both: torch.Tensor, times: torch.Tensor) -> SimpleNamespace:
        grid, asked = both[:, :3], both[:, 3:, 0, 0] / 2 + 0.5
        apart = avg_pool2d(grid[:, 1:2] - grid[:, 2:], 5, 1, 2, count_include_pad=False)
        order = apart.flatten(1).sort(1).values
        least = order[torch.arange(len(order)), (255 * asked[:, 2]).long()]
        first = torch.tanh(4 * (apart - least[:, None, None, None]))
        shares = torch.cat([-torch.ones_like(first), first, -first], 1)
        return SimpleNamespace(sample=(grid - shares) / (times[:, None, None, None] / 1000))


def sample_field(seed: int, width: int, height: int) -> tuple[np.ndarray, LayoutField]:  # type: ignore[type-arg]
    field = LayoutField(Noiseless(), [0.0, 0.3, 0.7], width, height, 32)  # type: ignore[arg-type]
    return np.concatenate(list(field.strips(field.sample(seed)))), field


def test_a_sampled_map_of_any_size_has_the_asked_shares_and_no_borders() -> None:
    labels, field = sample_field(1, 160, 99)
    assert (labels.shape, labels.dtype) == ((99, 160), np.uint8)
    assert set(np.unique(labels)) == {1, 2}
    assert (labels == 1).mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(sample_field(1, 160, 99)[0], labels)
    assert (sample_field(2, 160, 99)[0] != labels).any()
    changes = (np.diff(labels.astype(int)) != 0).mean(0)
    starts = field.starts(STEPS - 1, 1)
    borders = [2 * cell - 1 for start in starts for cell in (start, start + 16) if 0 < cell < 80]
    assert changes[borders].mean() < 2 * np.delete(changes, borders).mean()


def test_a_map_enlarged_in_blocks_is_the_map_enlarged_whole() -> None:
    model = make_layouts(LayoutRecipe(side=8, channels=(16,)), 3)
    field = LayoutField(model, [0.2, 0.8, 0.0], 520, 516, 36)
    grid = torch.randn(field.shape, generator=torch.Generator().manual_seed(0))
    assert field.shape == (3, 116, 116)  # 36 px are 8 cells, and borders of pixels every 2 cells
    strips = list(field.strips(grid))
    assert [strip.shape for strip in strips] == [(512, 520), (4, 520)]
    whole = to_labels(grid[None], (522, 522), torch.tensor([[True, True, False]]))[0]
    assert (np.concatenate(strips) != whole[:516, :520]).mean() < 1e-4  # rounding
    with pytest.raises(InputError, match="ask for at most 1,811 million pixels"):
        LayoutField(model, [0.2, 0.8, 0.0], 1 << 20, 1 << 20, 36)


def test_shares_of_a_map_are_those_asked_and_else_those_of_the_regions(
    store: DirectoryStore,
) -> None:
    model = read_model(store, ModelRef("m", "1"))
    usual = layout_shares(store, model, {})
    assert usual[0] == pytest.approx(0.125)
    assert sum(usual) == pytest.approx(1)
    asked = layout_shares(store, model, {"tumor": 0.2})
    assert asked == pytest.approx([0.125, 0.7, 0.175])
    assert layout_shares(store, model, {"stroma": 1})[2] == 0


def test_a_field_with_a_sampled_map(store: DirectoryStore) -> None:
    wanted = SampledMap(width=70, height=45, proportions={"tumor": 1})
    request = FieldRequest(field="f", model="m", sampled=wanted, steps=1, seed=3)
    ledger = Ledger(store)
    status = run_job(ledger, FieldStage(), ledger.submit(request), config=CONFIG)
    assert status.state == "done", status.failed
    record = store.get_model(field_key("f", "field.json"), FieldRecord)
    assert (record.width, record.height, record.request.sampled) == (70, 45, wanted)
    labels = tifffile.imread(store.local(field_key("f", "labels.tiff")))
    assert set(np.unique(labels)) == {0, 2}
    assert record.shares == {name: (labels == n).mean() for n, name in enumerate(CLASSES.names)}
    field = LayoutField(
        load_layouts(store, read_model(store, ModelRef("m", "1"))), [0.125, 0, 0.875], 70, 45, 32
    )
    np.testing.assert_array_equal(next(field.strips(field.sample(image_seed(3, -1)))), labels)
    assert not list(store.list(WORK))
