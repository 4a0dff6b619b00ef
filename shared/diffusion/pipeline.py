"""The published model as a diffusers pipeline: `HeteroTissuePipeline.from_pretrained(folder)`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from shared.diffusion import concat, embedding, regional  # noqa: F401 - classes that a folder may name
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    to_pixels,
    vae_factor,
)
from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.flow import draw_noise, guided, sample_flow
from shared.diffusion.guidance import Guidance
from shared.diffusion.precision import autocast
from shared.diffusion.staining import match_staining
from shared.errors import InputError


class HeteroTissuePipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images from label maps and crops."""

    vae: Autoencoder
    denoiser: Denoiser

    def __init__(self, vae: Autoencoder, denoiser: Denoiser) -> None:
        super().__init__()
        self.register_modules(vae=vae, denoiser=denoiser)

    @torch.inference_mode()
    def __call__(
        self,
        labels: NDArray[np.uint8],
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        *,
        steps: int = 10,
        guidance_map: float = 1.75,
        guidance_crops: float = 1.75,
        guidance_low: float = 0.25,
        guidance_high: float = 0.75,
        staining: float = 0.5,
        use_map: bool = True,
        use_crops: bool = True,
        first_order: bool = False,
        precision: str = "fp32",
        callback: Callable[[int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """Synthesize one image per label map.

        Args:
            labels: uint8 (batch, H, W) label maps.
            crops: the crops of each image; an empty list means none.
            seeds: one per image; the noise follows from it alone.
            steps: denoising steps.
            guidance_map, guidance_crops: weights of the two conditions; 1 is none extra.
            guidance_low, guidance_high: times, of noise at 1 and image at 0, between which
                they count.
            staining: how far regions are stained as their crops are, 0 to 1; see
                `match_staining`.
            use_map, use_crops: False drops that condition altogether.
            first_order: of the solver, for few-step students.
            precision: 'bf16' computes the networks in it, by autocast (see `autocast`) unless
                their weights are; the solver stays fp32.
            callback: called with the number of steps done.

        Returns:
            uint8 RGB (batch, H, W, 3).

        Raises:
            InputError: shapes, labels or lengths do not fit the model.
        """
        check_inputs(labels, crops, seeds, self.denoiser)
        factor = vae_factor(self.vae)
        height, width = labels.shape[1:]
        guidance = Guidance.of(
            guidance_map, guidance_crops, use_map, use_crops, guidance_low, guidance_high
        )  # fmt: skip
        wanted = precision if self.vae.dtype == torch.float32 else "fp32"
        with autocast(self.device.type, wanted):
            encoded = self.denoiser.encode_branches(
                labels, crops, guidance.branches, lambda images: encode_latents(self.vae, images)
            )
            velocity = guided(self.denoiser, encoded, guidance)
            shape = (int(self.vae.config.latent_channels), height // factor, width // factor)
            noise = draw_noise(seeds, shape).to(self.device)
            latents = sample_flow(velocity, noise, steps, callback, first_order)
            images = to_pixels(decode_latents(self.vae, latents))
        if use_map and use_crops:
            images = match_staining(images, labels, crops, staining)
        pixels: NDArray[np.uint8] = images.cpu().numpy()
        return pixels


def check_inputs(
    labels: NDArray[np.uint8],
    crops: Sequence[Sequence[Crop]],
    seeds: Sequence[int],
    denoiser: Denoiser,
) -> None:
    """Check what an image is to be made from.

    Raises:
        InputError: shapes, labels, places or lengths do not fit the denoiser.
    """
    batch, height, width = labels.shape
    factor, classes = int(denoiser.config.factor), int(denoiser.config.classes)
    first = int(denoiser.config.first)
    if height % factor or width % factor:
        raise InputError(f"label maps of {height}×{width} are no multiple of {factor} pixels")
    if labels.max(initial=0) >= classes:
        raise InputError(f"label {labels.max()} is beyond the model's {classes} classes")
    for crop in itertools.chain.from_iterable(crops):
        side = len(crop.pixels)
        if not first <= crop.label < classes:
            raise InputError(
                f"a crop is of label {crop.label}, but this model takes crops of "
                f"{first} to {classes - 1}"
            )
        if min(crop.x, crop.y) < 0 or crop.x + side > width or crop.y + side > height:
            raise InputError(
                f"a crop of {side} px at ({crop.x}, {crop.y}) reaches beyond the image of "
                f"{width}×{height} px"
            )
    if len(crops) != batch or len(seeds) != batch:
        raise InputError(
            f"{batch} label maps need {batch} crop lists and seeds, "
            f"not {len(crops)} and {len(seeds)}"
        )
