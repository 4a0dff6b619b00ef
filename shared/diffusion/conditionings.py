"""The ways to condition a denoiser, by name."""

from __future__ import annotations

import json
from pathlib import Path

from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.autoencoder import Autoencoder, vae_factor
from shared.diffusion.concat import ConcatDenoiser
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.embedding import EmbeddingDenoiser
from shared.diffusion.regional import RegionalDenoiser

CONDITIONINGS: dict[str, type[ConcatDenoiser] | type[RegionalDenoiser]] = {
    "concat": ConcatDenoiser,
    "embedding": EmbeddingDenoiser,
    "regional": RegionalDenoiser,
}


def make_denoiser(
    recipe: DenoiserRecipe, size: int, classes: Classes, vae: Autoencoder
) -> Denoiser:
    """Make a recipe's denoiser, untrained, for images of `size` pixels and latents of `vae`."""
    kind = CONDITIONINGS[recipe.conditioning]
    crops = {} if kind is ConcatDenoiser else {"crop_side": int(size * recipe.crop_max)}
    denoiser: Denoiser = kind(
        classes=len(classes),
        latent_channels=vae.config.latent_channels,
        factor=vae_factor(vae),
        channels=recipe.channels,
        layers=recipe.layers,
        attention=recipe.attention,
        condition_channels=recipe.condition_channels,
        first=classes.first,
        **crops,
    )
    if isinstance(denoiser, EmbeddingDenoiser):
        denoiser.start_encoder()
    return denoiser


def load_denoiser(folder: Path) -> Denoiser:
    """Load a denoiser of any conditioning from its folder in diffusers' format."""
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    (kind,) = [kind for kind in CONDITIONINGS.values() if kind.__name__ == name]
    denoiser: Denoiser = kind.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    denoiser.eval()
    return denoiser
