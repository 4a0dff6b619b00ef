"""Checks of a run's networks before anything is trained."""

from __future__ import annotations

import warnings

import torch

from services.train.run import Run
from shared.diffusion.autoencoder import make_vae, vae_factor
from shared.errors import InputError
from shared.storage import check_room

BYTES_PER_WEIGHT = 36
"""Bytes that a run stores per weight: a published one, and two checkpoints, each with the weight,
its mean and two moments of Adam."""


UNTRAINED_BYTES_PER_WEIGHT = 8
"""The same for a run without training steps, which copies its weights."""


def check_networks(run: Run) -> None:
    """Make the networks of a run without their weights, and check that sides and store fit them.

    Raises:
        InputError: the recipe's networks cannot be made, its sides do not fit them or the
            regions, or the store has too little room for them.
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
            denoiser = run.new_denoiser(vae)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(
            f"the networks of recipe {recipe.name!r} cannot be made: {error}"
        ) from error
    weights = sum(part.numel() for net in (vae, denoiser) for part in net.parameters())
    what = f"the checkpoints of recipe {recipe.name!r} ({weights / 1e6:.0f} million weights)"
    each = BYTES_PER_WEIGHT if run.trains_generator else UNTRAINED_BYTES_PER_WEIGHT
    check_room(run.store, weights * each, what)
