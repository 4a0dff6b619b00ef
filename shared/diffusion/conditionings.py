"""The ways to condition a denoiser, by name."""

from __future__ import annotations

from diffusers import AutoencoderKL

from shared.contracts.base import Classes
from shared.contracts.train import DenoiserRecipe
from shared.diffusion.autoencoder import vae_factor
from shared.diffusion.concat import ConcatDenoiser
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.embedding import EmbeddingDenoiser
from shared.diffusion.regional import RegionalDenoiser

CONDITIONINGS: dict[str, type[ConcatDenoiser] | type[RegionalDenoiser]] = {
    "concat": ConcatDenoiser,
    "embedding": EmbeddingDenoiser,
    "regional": RegionalDenoiser,
}


def make_denoiser(recipe: DenoiserRecipe, classes: Classes, vae: AutoencoderKL) -> Denoiser:
    """Make a recipe's denoiser, untrained, for latents of `vae`."""
    denoiser: Denoiser = CONDITIONINGS[recipe.conditioning](
        classes=len(classes),
        latent_channels=vae.config.latent_channels,
        factor=vae_factor(vae),
        channels=recipe.channels,
        layers=recipe.layers,
        attention=recipe.attention,
        condition_channels=recipe.condition_channels,
        first=classes.first,
    )
    if isinstance(denoiser, EmbeddingDenoiser):
        denoiser.start_encoder()
    return denoiser
