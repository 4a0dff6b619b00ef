"""Checkpoints of the package: they fit their recipes, and missing ones are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from heterotissue.recipes import load_recipe
from services.train.differences import difference, restored
from services.train.package_checkpoint import package_checkpoint
from services.train.warm_start import read_weights, start_denoiser, start_vae, student_of
from shared.contracts.base import Classes
from shared.contracts.recipe import EMBEDDED_VAE, VaeRecipe
from shared.contracts.regions import SourceSlides, region_set_key
from shared.contracts.train import training_key
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.errors import InputError
from shared.storage import DirectoryStore, Store
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set
from tests.toy_training import plan


def test_the_shipped_starter_starts_tiny_on_slides_and_on_tiles(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    slides = make_region_set(store, "slides", size=128, regions=1)
    tiles = slides.model_copy(
        update={"name": "tiles", "classes": Classes.of("gland", exhaustive=True)}
    )
    store.put_json(region_set_key("tiles"), tiles)
    for name in ("slides", "tiles"):
        plan(store, load_recipe("tiny"), "starter", name)
        known = store.get_model(training_key("w", "slides.json"), SourceSlides)
        assert [each.slide for each in known.slides] == ["slide-a", "slide-b"]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("starter", "tiny"), ("colon", "cpu-small"), ("colon-student", "cpu-small")],
)
def test_a_shipped_checkpoint_fits_its_recipe_and_other_classes(
    tmp_path: Path, name: str, recipe: str
) -> None:
    store = DirectoryStore(tmp_path)
    weights, known = read_weights(store, name), load_recipe(recipe)
    vae = make_vae(known.vae)
    denoiser = make_denoiser(known.denoiser, known.size, CLASSES, vae)
    start_vae(vae, weights)
    start_denoiser(denoiser, weights, CLASSES.names)
    assert vae.config.scaling_factor == weights.normalization["scaling_factor"]
    assert (student_of(store, name) is not None) == name.endswith("student")
    ends = [key for key in weights.denoiser if key.endswith("conv_out.weight")]
    state = denoiser.state_dict()
    assert ends
    assert all(torch.equal(state[key], weights.denoiser[key]) for key in ends)


@pytest.mark.parametrize("embedded", [True, False])
def test_a_packaged_checkpoint_holds_its_autoencoder_unless_the_package_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    store = DirectoryStore(tmp_path)
    own = VaeRecipe(channels=(8, 16), latent_channels=4)
    vae = VaeRecipe(pretrained=EMBEDDED_VAE) if embedded else own
    publish_toy_model(store, make_region_set(store, regions=1), vae=vae)
    path = tmp_path / "colon"
    package_checkpoint(store, "models/toy/1", path)
    with safe_open(path, framework="pt") as file:
        assert any(name.startswith("vae.") for name in file.keys()) is not embedded  # noqa: SIM118
    monkeypatch.setattr("services.train.warm_start.packaged_path", lambda _: path)
    published, packaged = read_weights(store, "models/toy/1"), read_weights(store, "colon")
    for kind in ("vae", "denoiser"):
        before, after = getattr(published, kind), getattr(packaged, kind)
        assert before.keys() == after.keys()
        assert all(torch.equal(value.half(), after[name].half()) for name, value in before.items())
    assert packaged.normalization == published.normalization


def test_weights_are_kept_as_a_difference_that_rounds_little() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("kernel", (8, 4, 3, 3)), ("matrix", (8, 16)), ("bias", (8,)))
    }
    base["same"] = torch.ones(4, 4)
    near = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    near["same"] = base["same"]
    kept = difference(near, base)
    assert kept["kernel"].dtype == torch.int8
    found = restored(kept, base)
    assert found.keys() == near.keys()
    for name, value in near.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() < 0.004  # of differences up to 0.4
    assert torch.equal(found["same"], base["same"])
    with pytest.raises(ValueError, match="other layers"):
        difference(near, base | {"more": torch.ones(1)})


def test_a_checkpoint_is_packaged_as_the_difference_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, paths = DirectoryStore(tmp_path), {}
    publish_toy_model(store, make_region_set(store, regions=1))
    for name, base in (("colon", None), ("colon-student", "colon")):
        paths[name] = tmp_path / name
        monkeypatch.setattr("services.train.warm_start.packaged_path", paths.__getitem__)
        package_checkpoint(store, "models/toy/1", paths[name], base)
    first, second = (read_weights(store, name) for name in paths)
    assert paths["colon-student"].stat().st_size < 0.6 * paths["colon"].stat().st_size
    for name, value in first.denoiser.items():
        assert torch.allclose(second.denoiser[name], value, atol=1e-3)


@pytest.mark.parametrize("read", [read_weights, student_of])
def test_a_checkpoint_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Store, str], object]
) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(InputError, match="'none' is no model: give starter, colon"):
        read(store, "none")
    with pytest.raises(InputError, match=re.escape("models/none/1/model.json")):
        read(store, "models/none/1")
    monkeypatch.setattr("services.train.warm_start.packaged_path", lambda name: tmp_path / name)
    with pytest.raises(InputError, match="starter is missing: install"):
        read(store, "starter")
