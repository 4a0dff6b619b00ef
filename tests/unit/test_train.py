"""Training: batches, exact resume, and what a published version is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from heterotissue.cli.app import app
from heterotissue.recipes import load_recipe
from services.train.stage import TrainStage
from shared.contracts.base import Classes
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import Recipe, StudentRecipe
from shared.contracts.regions import region_set_key
from shared.contracts.sampling import Sampling
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest
from shared.diffusion.autoencoder import read_vae
from shared.diffusion.model_store import load_model
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import HandedBackError, InputError
from shared.imaging.region_sets import load_region_set
from shared.jobs import Context, Ledger, run_job
from shared.models import find_version, read_model, versions
from shared.storage import DirectoryStore
from tests.region_sets import CLASSES, make_region_set
from tests.toy_training import RECIPE, outputs, plan, train


def make_patients_regions(store: DirectoryStore) -> None:
    """Make the region set of a patient whose name must not go out."""
    record = make_region_set(store)
    parts = tuple(part.model_copy(update={"patient": "DOE-JANE"}) for part in record.slides)
    store.put_json(region_set_key(record.name), record.model_copy(update={"slides": parts}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    make_patients_regions(store)
    train(store)
    return store


def test_a_published_model_names_no_slide_and_no_patient(trained: DirectoryStore) -> None:
    record = load_region_set(trained, "toy")
    names = [b"DOE-JANE", *(part.slide.encode() for part in record.slides)]
    files = {key: trained.get(key) for key in trained.list("models/m/1/")}
    assert len(files) >= 6
    assert [(key, name) for key, body in files.items() for name in names if name in body] == []


def test_publishes_a_diffusers_folder(trained: DirectoryStore) -> None:
    folder = trained.root / "models/m/1"
    pipeline = HeteroTissuePipeline.from_pretrained(folder, use_safetensors=True)
    assert pipeline.denoiser.config.classes == len(CLASSES)
    record = trained.get_model("models/m/1/model.json", ModelRecord)
    assert set(record.sha256) == {
        "vae/diffusion_pytorch_model.safetensors",
        "denoiser/diffusion_pytorch_model.safetensors",
    }
    assert "stroma" in (folder / "README.md").read_text()
    keys = list(trained.list("training/r/"))
    assert "training/r/samples/00000004.png" in keys
    assert any("tensorboard" in key for key in keys)


def test_what_is_published_is_the_moving_average(trained: DirectoryStore) -> None:
    last = safetensors.torch.load(
        trained.get("training/r/checkpoints/denoiser-00000004.safetensors")
    )
    made = HeteroTissuePipeline.from_pretrained(trained.root / "models/m/1", use_safetensors=True)
    published = dict(made.denoiser.named_parameters())
    assert all(torch.equal(v, last[f"average/{name}"]) for name, v in published.items())
    assert any(not torch.equal(v, last[f"model/{name}"]) for name, v in published.items())


def highest_rate(store: DirectoryStore, kind: str) -> float:
    """The highest learning rate that a training's metrics tell of."""
    keys = store.list(f"training/r/metrics/{kind}-")
    lines = [line for key in keys for line in store.get(key).splitlines()]
    return max(float(json.loads(line)["learning_rate"]) for line in lines)


def test_the_decoder_is_trained_alone(trained: DirectoryStore) -> None:
    before, after = (
        read_vae(trained.root / "training/r" / kind).state_dict() for kind in ("vae", "decoder")
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "decoder.conv_out.conv.weight" in changed
    assert not any(name.startswith(("encoder.", "quant_conv.")) for name in changed)
    published = read_vae(trained.root / "models/m/1/vae").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in published.items())
    rates = {kind: highest_rate(trained, kind) for kind in ("vae", "decoder")}
    assert rates == pytest.approx({"vae": 1e-3, "decoder": 1e-5}, rel=0.5)


def test_a_missing_perceptual_network_is_told_before_training(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store)
    vae = RECIPE.vae.model_copy(update={"perceptual": "no-such-network"})
    recipe = RECIPE.model_copy(update={"vae": vae})
    context = Context(store, threads=1, device="cpu", report=lambda *_: None)
    with pytest.raises(InputError, match="no-such-network"):
        TrainStage().plan(TrainRequest(run="r", regions="toy", recipe=recipe, model="m"), context)


def test_a_rerun_and_a_resumed_run_give_the_same_bytes(
    trained: DirectoryStore, tmp_path: Path, told: None
) -> None:
    store = DirectoryStore(tmp_path)
    make_patients_regions(store)
    request = TrainRequest(run="r", regions="toy", recipe=RECIPE, model="m")
    stage = TrainStage()
    steps: list[int] = []
    context = Context(
        store, threads=1, device="cpu", report=lambda done, total, note: steps.append(done)
    )
    plan = stage.plan(request, context)
    for phase in plan.phases:
        for shard in phase:
            with pytest.raises(HandedBackError):  # in the middle of the segment
                stage.run(request, shard, Context(store, threads=1, device="cpu", report=_end))
            for first in (1 if shard.args["kind"] == "latents" else 2, 1):
                steps.clear()
                stage.run(request, shard, context)
                assert steps[0] == first  # it goes on where it was told to end
    train(store)
    assert outputs(store) == outputs(trained)


@pytest.fixture
def told() -> Iterator[None]:
    """Let this process give back its unit when it is told to end, as a worker does."""

    def hand_back(*_: object) -> None:
        raise HandedBackError

    before = signal.signal(signal.SIGTERM, hand_back)
    yield
    signal.signal(signal.SIGTERM, before)


def _end(done: int, total: int, note: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_generation_depends_on_the_image_seed_not_on_the_batch(trained: DirectoryStore) -> None:
    sampler = load_model(trained, ModelRef("m", "1"), "cpu")
    labels = np.ones((3, 32, 32), np.uint8)
    made = sampler.generate(labels, [[]] * 3, [7, 8, 9], Sampling(steps=3))
    alone = sampler.generate(labels[:1], [[]], [9], Sampling(steps=3))[0]
    assert np.abs(made[2].astype(int) - alone).max() <= 1
    assert not np.array_equal(made[0], made[1])


def test_generation_refuses_what_does_not_fit(trained: DirectoryStore) -> None:
    sampler = load_model(trained, ModelRef("m", "1"), "cpu")
    with pytest.raises(InputError, match="beyond the model's 3 classes"):
        sampler.generate(np.full((1, 32, 32), 3, np.uint8), [[]], [0], Sampling())
    with pytest.raises(InputError, match="no multiple"):
        sampler.generate(np.ones((1, 33, 32), np.uint8), [[]], [0], Sampling())


def test_a_warm_start_of_another_recipe_is_refused_before_training(
    trained: DirectoryStore,
) -> None:
    wrong = RECIPE.model_copy(update={"vae": RECIPE.vae.model_copy(update={"latent_channels": 8})})
    with pytest.raises(
        InputError, match=r"does not fit the VAE .*models/m/1 was trained by .*'toy'"
    ):
        plan(trained, wrong, "models/m/1")
    wide = RECIPE.denoiser.model_copy(update={"condition_channels": 64})
    with pytest.raises(InputError, match="does not fit the denoiser"):
        plan(trained, RECIPE.model_copy(update={"denoiser": wide}), "models/m/1")
    heads = RECIPE.denoiser.model_copy(update={"head_width": 16})  # layers of the same shapes
    with pytest.raises(InputError, match=r"set recipe\.denoiser\.head_width=32"):
        plan(trained, RECIPE.model_copy(update={"denoiser": heads}), "models/m/1")
    other = RECIPE.denoiser.model_copy(update={"conditioning": "concat"})
    with pytest.raises(InputError, match="another conditioning"):
        plan(trained, RECIPE.model_copy(update={"denoiser": other}), "models/m/1")
    with pytest.raises(InputError, match=r"colon was trained by .*Take --recipe cpu-small"):
        plan(trained, RECIPE, "colon")


def test_a_checkpoint_of_another_resolution_is_not_published_as_it_is(
    trained: DirectoryStore, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path)
    make_region_set(store, "toy", size=128, regions=1)  # at 0.5 µm/px
    recipe = load_recipe("tiny")
    plan(store, recipe, "starter")
    with pytest.raises(
        InputError, match=r"128 px at 1 µm/px.*128 px at 0\.5 µm/px.*--region-mpp 1"
    ):
        plan(store, recipe.untrained(), "starter")
    with pytest.raises(InputError, match=r"images of 32 px at 0\.5 .* are of 64 px at 0\.5"):
        plan(trained, RECIPE.untrained().model_copy(update={"size": 64}), "models/m/1")


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(
    trained: DirectoryStore,
) -> None:
    command = ["train", "--regions", "toy", "--store", str(trained.root), "--warm-start"]
    for name in ("nope", "models/nope/1", "m"):
        error = CliRunner().invoke(app, [*command, name]).exception
        assert isinstance(error, InputError)
        assert "starter, colon, colon-student, or a model of this store: models/" in str(error)


def test_a_warm_start_is_published_as_it_is(trained: DirectoryStore, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    command = ["train", "--regions", "toy", "--model", "same", "--recipe", str(recipe), "--as-is"]
    store = ["--store", str(trained.root)]
    refused = CliRunner().invoke(app, [*command, *store])
    assert isinstance(refused.exception, InputError)
    outcome = CliRunner().invoke(app, [*command, *store, "--warm-start", "models/m/1"])
    assert outcome.exit_code == 0, outcome.output
    for part in ("denoiser", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = (
            safetensors.torch.load_file(trained.root / f"models/{m}/1/{name}")
            for m in ("m", "same")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
    record = load_region_set(trained, "toy")
    known = record.classes.names[record.classes.first :]
    other = Classes.of(*known[:-1], "cartilage", exhaustive=record.classes.exhaustive)
    trained.put_json(region_set_key("toy"), record.model_copy(update={"classes": other}))
    try:
        for name, start in (("new", "m"), ("copy", "new")):
            outcome = CliRunner().invoke(
                app, [*command, *store, "--model", name, "--warm-start", f"models/{start}/1"]
            )
            assert outcome.exit_code == 0, outcome.output
            made = trained.get_model(f"models/{name}/1/model.json", ModelRecord)
            assert made.unlearnt == ("cartilage",)
    finally:
        trained.put_json(region_set_key("toy"), record)
    assert "| never learnt | cartilage" in trained.get("models/new/1/README.md").decode()


def test_a_recipe_larger_than_the_regions_is_refused(trained: DirectoryStore) -> None:
    large = RECIPE.model_copy(update={"size": 128})
    request = TrainRequest(run="x", regions="toy", recipe=large, model="x")
    ledger = Ledger(trained)
    status = run_job(ledger, TrainStage(), ledger.submit(request, replace=True))
    assert status.state == "failed"
    assert "smaller than the recipe's 128" in status.failed["plan"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"denoiser": {"channels": (40, 64)}},
            r"cannot be made: num_channels \(40\) must be",
        ),
        ({"vae": {"crop": 96}}, "recipe.vae.crop is 96 px, larger than the regions of 'toy', 64"),
        ({"vae": {"pretrained": "embedded"}, "size": 40}, "size 40 must be a multiple of 16"),
    ],
)
def test_what_does_not_fit_together_is_told_before_training(
    trained: DirectoryStore, change: dict[str, Any], message: str
) -> None:
    plain = RECIPE.model_dump(mode="json")
    for name, value in change.items():
        plain[name] = plain[name] | value if isinstance(value, dict) else value
    request = TrainRequest(run="x", regions="toy", recipe=Recipe.model_validate(plain), model="x")
    context = Context(trained, threads=1, device="cpu", report=lambda *_: None)
    with pytest.raises(InputError, match=message):
        TrainStage().plan(request, context)


def test_checkpoints_need_room(trained: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 1000)
    request = TrainRequest(run="x", regions="toy", recipe=RECIPE, model="x")
    context = Context(trained, threads=1, device="cpu", report=lambda *_: None)
    with pytest.raises(InputError, match=r"the checkpoints of recipe 'toy' .* has 0.0 MB free"):
        TrainStage().plan(request, context)


STUDENT = RECIPE.model_copy(
    update={
        "vae": RECIPE.untrained().vae,
        "denoiser": RECIPE.denoiser.model_copy(
            update={"student": StudentRecipe(sampling_steps=2, teacher_steps=2)}
        ),
    }
)


def test_a_student_is_published_and_says_what_it_is(trained: DirectoryStore) -> None:
    few = ["--sampling-steps", "2", "--teacher-steps", "2", "--steps", "4"]
    command = ["distill", "--model", "m", "--into", "fast", *few, "--store", str(trained.root)]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    model = trained.get_model("models/fast/1/model.json", ModelRecord)
    request = DatasetRequest(dataset="d", model="fast")
    assert request.sampling(model).steps == 2
    assert request.sampling(model).first_order
    assert request.model_copy(update={"staining": 1.0}).sampling(model).staining == 1
    with pytest.raises(InputError, match="samples in 2 steps without guidance"):
        request.model_copy(update={"steps": 20}).sampling(model)
    before, after = (
        read_vae(trained.root / f"models/{name}/1/vae").state_dict() for name in ("m", "fast")
    )
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_recipe_makes_a_student_as_the_next_version(
    trained: DirectoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    recipe = RECIPE.model_copy(update={"student_steps": 2})
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = ["train", "--regions", "toy", "--model", "two", "--recipe", str(path)]
    for _ in range(2):  # the second time both are done
        outcome = CliRunner().invoke(app, [*command, "--store", str(trained.root)])
        assert outcome.exit_code == 0, outcome.output
    assert versions(trained, "two") == ["1", "2"]
    assert read_model(trained, find_version(trained, "two")).recipe.sampling.steps == 4
    assert read_model(trained, ModelRef("two", "1")).recipe.denoiser.student is None
    outcome = CliRunner().invoke(app, [*command, "--store", str(trained.root), "--dry-run"])
    assert "a student of two/1 is trained" in outcome.output


@pytest.mark.parametrize("name", ["fast", "m"])
def test_what_is_published_as_it_is_stays_the_student_that_it_is(
    trained: DirectoryStore, name: str
) -> None:
    ledger = Ledger(trained)
    taught = TrainRequest(
        run="fast", regions="toy", recipe=STUDENT, model="fast", warm_start="models/m/1"
    )
    again = TrainRequest(
        run=f"again-{name}", regions="toy", recipe=RECIPE.untrained(), model=f"again-{name}",
        warm_start=f"models/{name}/1",
    )  # fmt: skip
    for request in (taught, again):
        status = run_job(ledger, TrainStage(), ledger.submit(request, replace=True))
        assert status.state == "done", status.failed
    before, after = (
        trained.get_model(f"models/{each}/1/model.json", ModelRecord).recipe.sampling
        for each in (name, f"again-{name}")
    )
    assert after == before


def test_a_student_needs_a_teacher() -> None:
    with pytest.raises(ValidationError, match="needs a teacher"):
        TrainRequest(run="r", regions="toy", recipe=STUDENT, model="m")
