"""A small untrained denoiser, and maps and crops for it."""

from __future__ import annotations

import numpy as np
import torch

from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe, VaeRecipe
from shared.diffusion.autoencoder import Autoencoder, encode_latents, make_vae
from shared.diffusion.conditionings import make_denoiser
from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import Denoiser, Tensors

CLASSES = Classes.of("stroma", "tumor")
SIDE = 32


def small_denoiser(conditioning: str, classes: Classes = CLASSES) -> Denoiser:
    """Make a denoiser of `SIDE` px, seeded, whose weights are all drawn."""
    torch.manual_seed(0)
    recipe = DenoiserRecipe.model_validate(
        {"conditioning": conditioning, "channels": (32, 32), "attention": (False, True),
         "condition_channels": 16}
    )  # fmt: skip
    denoiser = make_denoiser(recipe, SIDE, classes, small_vae())
    for parameter in denoiser.parameters():  # fresh biases are zero, and would hide mistakes
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser.eval()


def small_vae() -> Autoencoder:
    """Make an autoencoder that divides sides by 4, seeded."""
    torch.manual_seed(1)
    return make_vae(VaeRecipe(channels=(8, 16, 16), latent_channels=4))


def encoded(
    denoiser: Denoiser,
    labels: np.ndarray,  # type: ignore[type-arg]
    crops: list[list[Crop]],
    use_map: bool = True,
    use_crops: bool = True,
) -> Tensors:
    """Encode maps (batch, `SIDE`, `SIDE`) and their crops as the condition of a denoiser."""
    vae, batch = small_vae(), len(labels)
    with torch.no_grad():
        return denoiser.encode_condition(
            denoiser.lay_out(
                labels, crops, [use_map] * batch, [use_crops] * batch,
                lambda images: encode_latents(vae, images),
            )
        )  # fmt: skip


def two_halves() -> np.ndarray:  # type: ignore[type-arg]
    """Stroma on the left, tumour on the right."""
    labels = np.ones((1, SIDE, SIDE), np.uint8)
    labels[:, :, SIDE // 2 :] = 2
    return labels


def noise_crop(label: int, seed: int, side: int = 12) -> Crop:
    """Noise in a colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8) + rng.integers(
        0, 120, 3, dtype=np.uint8
    )
    return Crop(label, 0, 0, pixels)
