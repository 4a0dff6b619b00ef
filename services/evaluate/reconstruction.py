"""How well the autoencoder reconstructs real images, which limits every generator's quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from skimage.metrics import structural_similarity

from services.evaluate.data import Material, centre, spread
from shared.arrays import UInt8
from shared.contracts.evaluate import Likeness
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    to_pixels,
    to_unit,
)
from shared.diffusion.model_store import load_model
from shared.jobs import Context

Transform = Callable[[UInt8], UInt8]
"""A function that maps images to images, both uint8 RGB (n, h, w, 3)."""

BATCH = 16

MAX_SCORED = 500
"""Greatest number of real images whose reconstructions are scored."""


def autoencoder_of(material: Material, context: Context) -> Transform:
    """Load the autoencoder of the dataset's model, as a function that reconstructs images."""
    loaded = load_model(context.store, material.model.ref, context.device)
    return reconstruct(loaded.pipeline.vae, context.device)


def reconstruct(vae: Autoencoder, device: str) -> Transform:
    """Return a function that encodes images by an autoencoder and decodes the latents."""

    @torch.inference_mode()
    def reconstructed(images: UInt8) -> UInt8:
        parts = [
            to_pixels(
                decode_latents(
                    vae,
                    encode_latents(vae, to_unit(torch.from_numpy(part)).to(device)),
                )
            ).cpu().numpy()
            for part in np.array_split(images, max(1, -(-len(images) // BATCH)))
        ]  # fmt: skip
        return np.concatenate(parts)

    return reconstructed


def likeness(pairs: Iterable[tuple[UInt8, UInt8]]) -> Likeness:
    """Return mean PSNR (dB) and mean SSIM of pairs of images, uint8 RGB (h, w, 3)."""
    psnr, ssim = [], []
    for image, other in pairs:
        error = float(np.mean((image.astype(np.float64) - other) ** 2))
        psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
        ssim.append(structural_similarity(image, other, channel_axis=2))
    return Likeness(psnr=float(np.mean(psnr)), ssim=float(np.mean(ssim)), n=len(psnr))


def reconstruction_scores(material: Material, autoencoder: Transform) -> Likeness:
    """Return PSNR and SSIM of the reconstructions of real test images."""
    numbers = spread(len(material.test), MAX_SCORED)
    images = (centre(material.test.pair(number)[0], material.dataset.size) for number in numbers)
    return likeness((image, autoencoder(image[None])[0]) for image in images)
