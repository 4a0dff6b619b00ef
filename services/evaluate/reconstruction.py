"""How well the autoencoder gives real images back: no generator is better than its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from services.evaluate.data import Material, centre, spread
from shared.arrays import UInt8
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    to_pixels,
    to_unit,
)

BATCH = 16
MOST = 500  # images that are scored


def reconstruct(vae: Autoencoder, device: str) -> Callable[[UInt8], UInt8]:
    """Return a function that encodes and decodes uint8 RGB images (n, h, w, 3)."""

    @torch.inference_mode()
    def through(images: UInt8) -> UInt8:
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

    return through


def likeness(pairs: Iterable[tuple[UInt8, UInt8]]) -> dict[str, Any]:
    """Return mean PSNR (dB) and SSIM of pairs of images (h, w, 3), and their number `n`."""
    psnr, ssim = [], []
    for image, again in pairs:
        error = float(np.mean((image.astype(np.float64) - again) ** 2))
        psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
        ssim.append(structural_similarity(image, again, channel_axis=2))
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim)), "n": len(psnr)}


def reconstruction_scores(material: Material, through: Callable[[UInt8], UInt8]) -> dict[str, Any]:
    """Return the `likeness` of real test images to what the autoencoder gives back."""
    numbers = spread(len(material.test), MOST)
    images = (centre(material.test.pair(number)[0], material.dataset.size) for number in numbers)
    return likeness((image, through(image[None])[0]) for image in images)
