"""Checks of a run's networks before anything is trained."""

from __future__ import annotations

import warnings

import torch

from services.train.run import Run
from services.train.warm_start import start_denoiser, start_vae
from shared.diffusion.autoencoder import make_vae, vae_factor
from shared.errors import InputError


def check_networks(run: Run) -> None:
    """Make the networks of a run without their weights, and check that all fits together.

    Raises:
        InputError: the recipe's networks cannot be made, its sides do not fit them or the regions,
            or the warm start is of other networks.
    """
    recipe, weights = run.recipe, run.starting_weights()
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
            denoiser = run.new_denoiser(vae)
            if weights is not None:
                start_vae(vae, weights)
                start_denoiser(denoiser, weights, run.regions.classes.names)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"the networks of recipe {recipe.name!r} cannot be made: {error}"
        ) from error
