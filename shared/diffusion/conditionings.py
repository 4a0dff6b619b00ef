"""The ways to condition a denoiser, by name.

To add one, write a subclass of `Denoiser` in a module of its own, and add it to `CONDITIONINGS`,
its name to `DenoiserRecipe.conditioning`, and its public name to `heterotissue.models`.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import ModelMixin  # noqa: F401 - diffusers looks for it beside the classes

from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.autoencoder import Autoencoder
from shared.diffusion.concat import ConcatDenoiser
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.embedding import EmbeddingDenoiser
from shared.diffusion.regional import RegionalDenoiser

CONDITIONINGS: dict[str, type[Denoiser]] = {
    "concat": ConcatDenoiser,
    "embedding": EmbeddingDenoiser,
    "regional": RegionalDenoiser,
}


def make_denoiser(
    recipe: DenoiserRecipe, size: int, classes: Classes, vae: Autoencoder
) -> Denoiser:
    """Make a recipe's denoiser, untrained, for images of `size` pixels and latents of `vae`."""
    return CONDITIONINGS[recipe.conditioning].untrained(recipe, size, classes, vae)


def load_denoiser(folder: Path) -> Denoiser:
    """Load a denoiser of any conditioning from its folder in diffusers' format."""
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    (kind,) = [kind for kind in CONDITIONINGS.values() if kind.__name__ == name]
    denoiser: Denoiser = kind.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    denoiser.eval()
    return denoiser
