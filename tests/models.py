"""Untrained toy models, for tests that need images but no quality."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch

from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.recipe import DenoiserRecipe, Recipe, VaeRecipe
from shared.contracts.regions import RegionSet
from shared.diffusion.autoencoder import make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.storage import Store, sha256_file


def publish_toy_model(
    store: Store,
    regions: RegionSet,
    size: int = 32,
    model: str = "toy",
    conditioning: Literal["regional", "embedding"] = "regional",
    vae: VaeRecipe = VaeRecipe(channels=(8, 16), latent_channels=4),  # noqa: B008 - frozen
) -> ModelRecord:
    """Publish version 1 of a model, seeded and untrained, for the classes of a region set."""
    recipe = Recipe(
        name="toy",
        size=size,
        vae=vae,
        denoiser=DenoiserRecipe(
            conditioning=conditioning, channels=(32, 64), attention=(False, True),
            condition_channels=32,
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    autoencoder = make_vae(recipe.vae)
    denoiser = make_denoiser(recipe.denoiser, size, regions.classes, autoencoder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        HeteroTissuePipeline(autoencoder, denoiser).save_pretrained(folder, safe_serialization=True)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = {path: path.relative_to(folder).as_posix() for path in files}
        for path in files:
            store.put_file(ModelRef(model, "1").prefix + names[path], path)
        weights = {names[p]: sha256_file(p) for p in files if p.suffix == ".safetensors"}
    record = ModelRecord(
        model=model, version="1", classes=regions.classes, size=size, mpp=regions.rule.mpp,
        regions=regions.name, run="none", recipe=recipe, warm_start=None, sha256=weights,
    )  # fmt: skip
    store.put_json(ModelRef(model, "1").key, record)
    return record
