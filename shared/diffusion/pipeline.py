"""The published model as a diffusers pipeline: `HeteroTissuePipeline.from_pretrained(folder)`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from shared.arrays import UInt8
from shared.contracts.sampling import Sampling
from shared.diffusion import conditionings
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

PUBLIC_MODULE = "heterotissue.models"
"""The module in which published folders look for our classes; it re-exports them."""


class HeteroTissuePipeline(DiffusionPipeline):  # type: ignore[misc]
    """Makes images from label maps and crops.

    Args:
        vae: the autoencoder.
        denoiser: predicts the velocity of the flow.
        sampling: fields of `Sampling` that differ from its defaults; a call without a `sampling`
            uses them. They are saved with the model, so that a few-step student samples in the
            steps for which it was trained.
        precision: 'fp32' or 'bf16', the precision of a call that names none; it is saved, too.
    """

    vae: Autoencoder
    denoiser: Denoiser

    def __init__(
        self,
        vae: Autoencoder,
        denoiser: Denoiser,
        sampling: Mapping[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        # The VAE is faster in this layout. Every pipeline uses it, because a CPU rounds differently
        # in each layout, and the service and a plain call must make the same images to the bit.
        vae.to(memory_format=torch.channels_last)
        self.register_modules(vae=vae, denoiser=denoiser)
        own = Sampling.model_validate(sampling or {})
        self.register_to_config(sampling=own.model_dump(), precision=precision)

    def register_to_config(self, **entries: Any) -> None:
        """Set entries of `model_index.json`; it names our own classes by their public module."""
        for name, entry in entries.items():
            if isinstance(entry, tuple) and str(entry[0]).startswith("shared."):
                entries[name] = (PUBLIC_MODULE, entry[1])
        super().register_to_config(**entries)

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """Read `model_index.json`, and name our classes by the module that imports them all.

        diffusers finds classes only in imported modules. A folder names `PUBLIC_MODULE`, or, if
        it was published by an earlier release, a module of `shared`.
        """
        config = super().load_config(*arguments, **options)
        for name, entry in dict(config).items():
            if isinstance(entry, list) and str(entry[0]).startswith(("heterotissue.", "shared.")):
                config[name] = [conditionings.__name__, entry[1]]
        return config

    @property
    def sampling(self) -> Sampling:
        """The settings of sampling for calls that give none."""
        return Sampling.model_validate(self.config.sampling)

    @torch.inference_mode()
    def __call__(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        *,
        use_map: bool = True,
        use_crops: bool = True,
        precision: str | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> UInt8:
        """Synthesize one image per label map.

        Args:
            labels: uint8 (batch, H, W) label maps.
            crops: the crops of each image; an empty list means no crops.
            seeds: one per image; the noise of an image depends on its seed alone.
            sampling: steps, guidance and staining; None takes those of the model.
            use_map, use_crops: False drops that condition for all images.
            precision: 'fp32' or 'bf16'; 'bf16' runs the networks under autocast (see `autocast`),
                unless their weights are bf16 already. The solver stays fp32. None takes the
                precision of the model.
            callback: called with the number of finished steps.

        Returns:
            uint8 RGB (batch, H, W, 3).

        Raises:
            InputError: shapes, labels or lengths do not fit the model.

        Example:
            >>> import numpy as np
            >>> from heterotissue.models import Crop, HeteroTissuePipeline
            >>> pipeline = HeteroTissuePipeline.from_pretrained(folder)  # doctest: +SKIP
            >>> labels = np.ones((1, 128, 128), np.uint8)  # class 1 everywhere
            >>> crop = Crop(label=1, x=0, y=0, pixels=tissue)  # doctest: +SKIP
            >>> images = pipeline(labels, [[crop]], seeds=[0])  # doctest: +SKIP
        """
        # 1. Check the inputs.
        check_inputs(labels, crops, seeds, self.denoiser)
        chosen = sampling if sampling is not None else self.sampling
        guidance = Guidance.from_scale(chosen, use_map, use_crops)
        factor = vae_factor(self.vae)
        height, width = labels.shape[1:]
        wanted = precision or self.config.precision
        with autocast(self.device.type, wanted if self.vae.dtype == torch.float32 else "fp32"):
            # 2. Encode the conditions once, for every branch of the guidance.
            encoded = self.denoiser.encode_branches(
                labels, crops, guidance.branches, lambda images: encode_latents(self.vae, images)
            )
            # 3. Draw the noise of each image from its seed.
            shape = (int(self.vae.config.latent_channels), height // factor, width // factor)
            noise = draw_noise(seeds, shape).to(self.device)
            # 4. Integrate the flow from the noise to latents.
            velocity = guided(self.denoiser, encoded, guidance)
            latents = sample_flow(velocity, noise, chosen.steps, callback, chosen.first_order)
            # 5. Decode the latents to pixels.
            images = to_pixels(decode_latents(self.vae, latents))
        # 6. Match the staining of each class to its crops.
        if use_map and use_crops:
            images = match_staining(images, labels, crops, chosen.staining)
        pixels: UInt8 = images.cpu().numpy()
        return pixels


def check_inputs(
    labels: UInt8,
    crops: Sequence[Sequence[Crop]],
    seeds: Sequence[int],
    denoiser: Denoiser,
) -> None:
    """Check the inputs of a call.

    Raises:
        InputError: shapes, labels, positions or lengths do not fit the denoiser.
    """
    batch, height, width = labels.shape
    factor, classes = int(denoiser.config.factor), int(denoiser.config.classes)
    first = int(denoiser.config.first)
    if height % factor or width % factor:
        raise InputError(f"label maps of {height}×{width} px are no multiple of {factor} px")
    if labels.max(initial=0) >= classes:
        raise InputError(f"label {labels.max()} is beyond the model's {classes} classes")
    for crop in itertools.chain.from_iterable(crops):
        side = len(crop.pixels)
        if not first <= crop.label < classes:
            raise InputError(
                f"a crop has label {crop.label}, but this model takes crops of "
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
