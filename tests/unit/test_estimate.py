"""The cost of a dataset, from one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterotissue.estimate import estimate
from services.train.stage import TrainStage
from shared.contracts.models import ModelRef
from shared.contracts.train import TrainRequest
from shared.diffusion.model_store import LoadedModel, load_model
from shared.errors import InputError
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_train import RECIPE


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    run_job(ledger, TrainStage(), job, config=Settings(threads=1))
    return load_model(store, ModelRef("m"), "cpu")


def test_cost_grows_with_pixels_and_not_with_the_batch(sampler: LoadedModel) -> None:
    one, many, large = (estimate(sampler, *given) for given in ((32, 1), (32, 4), (64, 1)))
    assert one.evaluations == 15  # 10 steps, 5 of them with and without the condition
    assert many.flops == pytest.approx(one.flops, rel=0.01)
    assert large.flops > 3 * one.flops
    assert large.stored > one.stored > 0
    assert one.seconds > 0


def test_a_size_that_does_not_fit_is_refused(sampler: LoadedModel) -> None:
    with pytest.raises(InputError, match="33 px"):
        estimate(sampler, 33, 1)


def test_a_model_in_mixed_precision_costs_as_many_operations(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    record = publish_toy_model(store, make_region_set(store))
    costs = []
    for precision in ("fp32", "bf16"):
        recipe = record.recipe.model_copy(update={"precision": precision})
        store.put_json(record.ref.key, record.model_copy(update={"recipe": recipe}))
        costs.append(estimate(load_model(store, record.ref, "cpu"), 32, 2))
    assert costs[1].flops == costs[0].flops > 0
