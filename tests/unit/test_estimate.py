"""The cost of a dataset, from one batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heterotissue.cli.app import app
from heterotissue.cohort_cost import (
    RESULTS,
    Cohort,
    Machines,
    moved,
    read_figures,
    samples,
    storage,
    work_of,
)
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
from tests.toy_training import RECIPE


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    make_region_set(store)
    ledger = Ledger(store)
    job = ledger.submit(TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m"))
    run_job(ledger, TrainStage(), job, config=Settings(threads=1))
    return load_model(store, ModelRef("m", "1"), "cpu")


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


UNIT = {"units": 10, "calls": 120, "seconds": 5.0}
FIGURES: dict[str, Any] = {
    "engine": {"date": "2026-01-01", "machine": "2 CPU cores"},
    "cohort": {
        "date": "2026-01-02",
        "slides": {
            "by kind of unit": dict.fromkeys(
                ("ingest slide", "embed slide", "cluster sample", "cluster assign",
                 "cluster regions"), UNIT,
            )
        },
    },
    "data_path": {
        name: {"megapixels per processor second": {"ours": rate}}
        for name, rate in (("a.svs", 100), ("b.tif", 200))
    },
    "clustering": {
        "k": 100, "patches read": 1000, "patches assigned": 500, "rows of an iteration": 1000,
    },
}  # fmt: skip


def test_a_cohort_costs_what_its_units_and_pixels_do() -> None:
    """Of 1,000 slides with 40,000 patches each, a slide is two parts, which a third unit joins."""
    cohort, machines = Cohort(1000, 40_000_000), Machines(10, 16, 100)
    work = work_of(cohort, machines, FIGURES)
    units = {name: part.units for name, part in work.items()}
    assert units == {
        "ingest": 1000, "embed": 3000, "cluster: sample": 1000, "cluster: fit": 1,
        "cluster: assign": 610, "cluster: regions": 1000,
    }  # fmt: skip
    assert work["ingest"].calls == 12_000
    assert work["embed"].core_seconds == pytest.approx(3000 * 0.5 + 40e6 * 256**2 / 100e6)
    assert work["embed"].gpu_seconds == pytest.approx(40e6 * 3.7e11 / 100e12)
    assert work["embed"].hours(machines) == pytest.approx(148_000 / 10 / 3600)
    assert work["cluster: assign"].core_seconds == pytest.approx(610 * 0.5 + 40e6 / 500)
    # 1,000 patches of each slide, and 2 million at most; 25 iterations, 2.875 times all clusters
    assert samples(cohort).sample_per_slide == 1000
    assert samples(Cohort(11_765, 634_000_000)).sample_per_slide == 169
    assert work["cluster: fit"].core_seconds == pytest.approx(1_000_000 * 25 * 2.875 / 1000)
    held = storage(cohort)
    assert held["features"] == 40e6 * (1536 * 4 + 16)
    assert moved(cohort, work) > 4 * held["slides"] + 5 * held["features"]


def test_the_command_estimates_a_cohort(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(FIGURES))
    asked = ["estimate", "--slides", "1000", "--patches", "40000000", "--figures", str(path)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert "features                246 GB" in done.output
    assert "measured 2026-01-01, 2026-01-02 on 2 CPU cores" in done.output
    for wrong, reason in (
        (["estimate"], "give --model for a dataset, or --slides"),
        (["estimate", "--slides", "5"], "give --model for a dataset, or --slides"),
        ([*asked[:-1], str(tmp_path / "no.json")], "no.json has no figures of benchmarks"),
    ):
        failed = CliRunner().invoke(app, wrong)
        assert isinstance(failed.exception, InputError)
        assert reason in str(failed.exception)


def test_the_figures_of_the_source_are_whole() -> None:
    cohort = Cohort(11_765, 634_000_000)
    work = work_of(cohort, Machines(), read_figures(RESULTS))
    assert all(part.core_seconds > 0 for part in work.values())
