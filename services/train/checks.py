"""Checks of a run's networks before anything is trained."""

from __future__ import annotations

import warnings

import torch

from services.train.run import Run
from shared.diffusion.autoencoder import make_vae, vae_factor
from shared.errors import InputError


def check_networks(run: Run) -> None:
    """Make the networks of a run without their weights, and check that its sides fit them.

    Raises:
        InputError: the recipe's networks cannot be made, or its sides do not fit them or the
            regions.
    """
    recipe = run.recipe
    crop = recipe.vae.crop
    if (recipe.vae.steps or recipe.vae.decoder_steps) and crop > run.regions.rule.size:
        raise InputError(
            f"recipe.vae.crop is {crop} px, larger than the regions of {run.request.regions!r}, "
            f"{run.regions.rule.size} px: lower it"
        )
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights of the device `meta` have no values
            vae = make_vae(recipe.vae)
            recipe.check_sides(vae_factor(vae))
            run.new_denoiser(vae)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"the networks of recipe {recipe.name!r} cannot be made: {error}"
        ) from error
