"""Loading published models: what is in memory is what was read, whatever a record says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch

from shared.contracts.models import ModelRef
from shared.diffusion import model_store
from shared.diffusion.model_store import load_layouts, load_model
from shared.errors import InputError
from shared.storage import DirectoryStore
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

REF = ModelRef("toy", "1")
WEIGHTS = "denoiser/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    publish_toy_model(store, make_region_set(store))
    return store


def tenant(published: DirectoryStore, tmp_path: Path, name: str) -> DirectoryStore:
    """A tenant's store with the same model."""
    shutil.copytree(published.root / "models", tmp_path / name / "models")
    return DirectoryStore(tmp_path / name)


def test_one_tenants_model_is_never_anothers(published: DirectoryStore, tmp_path: Path) -> None:
    acme, beta = (tenant(published, tmp_path, name) for name in ("acme", "beta"))
    key = REF.prefix + WEIGHTS
    zeros = {name: 0 * value for name, value in safetensors.torch.load(acme.get(key)).items()}
    acme.put(key, safetensors.torch.save(zeros))  # and the record still states beta's
    with pytest.raises(InputError, match=f"toy/1/{WEIGHTS}.* is damaged .*htd train"):
        load_model(acme, REF, "cpu")
    model = load_model(beta, REF, "cpu")
    assert any(part.abs().sum() > 0 for part in model.pipeline.denoiser.parameters())
    acme.put(key, beta.get(key))
    assert load_model(acme, REF, "cpu").pipeline is model.pipeline  # the same content
    acme.delete(key)
    model_store._pipelines.clear()
    with pytest.raises(InputError, match="is damaged"):
        load_model(acme, REF, "cpu")


def test_another_configuration_is_another_model(published: DirectoryStore, tmp_path: Path) -> None:
    acme, beta = (tenant(published, tmp_path, name) for name in ("acme", "beta"))
    key = REF.prefix + "model_index.json"
    acme.put(key, acme.get(key).replace(b'"fp32"', b'"bf16"') + b" ")
    own = load_model(acme, REF, "cpu").pipeline
    assert load_model(beta, REF, "cpu").pipeline is not own
    assert load_model(acme, REF, "cpu").pipeline is own


def test_only_configurations_and_named_weights_are_copied(
    published: DirectoryStore, tmp_path: Path
) -> None:
    store = tenant(published, tmp_path, "acme")
    for name in ("pipeline.py", "denoiser/evil.py", "denoiser/other.safetensors", "vae/a.bin"):
        store.put(REF.prefix + name, b"x")
    record = load_model(store, REF, "cpu").record
    content = model_store._copy(store, REF.prefix, record, tmp_path / "copy")
    names = {name for name, _ in content}
    assert names == set(record.sha256) | {name for name in names if name.endswith(".json")}
    assert not list(tmp_path.glob("copy/**/*.py"))


def test_a_damaged_configuration_is_named(published: DirectoryStore, tmp_path: Path) -> None:
    store = tenant(published, tmp_path, "damaged")
    key = REF.prefix + "vae/config.json"
    store.put(key, b"\0" * len(store.get(key)))
    with pytest.raises(InputError, match=r"toy/1/vae/config\.json' of .* is damaged .*htd train"):
        load_model(store, REF, "cpu")


def test_layouts_are_those_of_the_record(published: DirectoryStore, tmp_path: Path) -> None:
    store = tenant(published, tmp_path, "acme")
    record = load_model(store, REF, "cpu").record
    layouts = record.recipe.layouts.model_copy(update={"steps": 1})
    recipe = record.recipe.model_copy(update={"layouts": layouts})
    name = "layouts/diffusion_pytorch_model.safetensors"
    store.put(REF.prefix + name, b"x")
    for sha256 in (record.sha256, record.sha256 | {name: "0"}):
        changed = record.model_copy(update={"recipe": recipe, "sha256": sha256})
        with pytest.raises(InputError, match="is damaged"):
            load_layouts(store, changed)
