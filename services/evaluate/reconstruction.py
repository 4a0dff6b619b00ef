"""How well the autoencoder gives real images back: no generator is better than its decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from services.evaluate.data import Material, centre, spread
from shared.contracts.train import ModelRecord
from shared.diffusion.autoencoder import decode_latents, encode_latents, to_pixels, to_unit
from shared.diffusion.model_store import load_model
from shared.jobs import Context

UInt8 = NDArray[np.uint8]

BATCH = 16
MOST = 500  # images that are scored


def reconstruct(context: Context, model: ModelRecord) -> Callable[[UInt8], UInt8]:
    """Return a function that encodes and decodes uint8 RGB images (n, h, w, 3)."""
    vae = load_model(context.store, model.model, model.version, context.device).pipeline.vae

    @torch.inference_mode()
    def through(images: UInt8) -> UInt8:
        parts = [
            to_pixels(
                decode_latents(
                    vae,
                    encode_latents(vae, to_unit(torch.from_numpy(part)).to(context.device)),
                )
            ).cpu().numpy()
            for part in np.array_split(images, max(1, -(-len(images) // BATCH)))
        ]  # fmt: skip
        return np.concatenate(parts)

    return through


def reconstruction_scores(context: Context, material: Material) -> dict[str, Any]:
    """Return mean PSNR (dB) and SSIM of real test images given back by the autoencoder."""
    through = reconstruct(context, material.model)
    psnr, ssim = [], []
    numbers = spread(len(material.test), MOST)
    for number in numbers:
        image = centre(material.test.pair(number)[0], material.dataset.size)
        again = through(image[None])[0]
        error = np.mean((image.astype(np.float64) - again) ** 2)
        psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
        ssim.append(structural_similarity(image, again, channel_axis=2))
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim)), "n": len(numbers)}
