"""Conditioning by an embedding of each crop, with which Alfasly et al. compare raw crops.

It differs from `regional` in one point: a crop becomes the feature vector of an ImageNet
encoder instead of the latents of its pixels.
"""

from __future__ import annotations

from typing import Any, Self

import cv2
import numpy as np
import timm
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.autoencoder import Autoencoder
from shared.diffusion.denoiser import Encode
from shared.diffusion.regional import RegionalDenoiser
from shared.encoders import IMAGENET, REGISTRY, normalized, packaged_state

ENCODER = "efficientnet-lite0"


class EmbeddingDenoiser(RegionalDenoiser):
    """A `RegionalDenoiser` with a feature vector per crop; its frozen encoder is saved with it."""

    crop_channels = REGISTRY[ENCODER].dim

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        classes: int,
        latent_channels: int,
        factor: int,
        channels: tuple[int, ...],
        layers: int,
        attention: tuple[bool, ...],
        condition_channels: int,
        first: int,
        crop_side: int,
        head_width: int = 32,
    ) -> None:
        super().__init__(
            classes, latent_channels, factor, channels, layers, attention, condition_channels,
            first, crop_side, head_width,
        )  # fmt: skip
        spec = REGISTRY[ENCODER]
        self.encoder = timm.create_model(spec.architecture, **spec.options)
        self.encoder.requires_grad_(False)

    @classmethod
    def untrained(
        cls,
        recipe: DenoiserRecipe,
        size: int,
        classes: Classes,
        vae: Autoencoder,
        **settings: Any,
    ) -> Self:
        """See `Denoiser.untrained`. Raises `InputError` without the encoder's package."""
        denoiser = super().untrained(recipe, size, classes, vae, **settings)
        denoiser._load_encoder()
        return denoiser

    def _load_encoder(self) -> None:
        """Load the encoder's published weights."""
        state = packaged_state(REGISTRY[ENCODER].package, self.encoder)
        self.encoder.load_state_dict({k: v for k, v in state.items() if "classifier" not in k})

    @torch.no_grad()
    def _represent(self, crops: list[UInt8], encode: Encode) -> tuple[Tensor, Tensor]:
        """Encode each crop to one token (n, dim, 1, 1).

        The second result, bool (n, 1, 1), is True where a token exists: here everywhere.
        """
        present = torch.ones(len(crops), 1, 1, dtype=torch.bool, device=self.device)
        if not crops:
            return torch.zeros(0, self.crop_channels, 1, 1, device=self.device), present
        side = REGISTRY[ENCODER].size
        images = np.stack(
            [cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in crops]
        )
        pixels = normalized(torch.from_numpy(images).to(self.device), IMAGENET)
        vectors: Tensor = self.encoder.eval()(pixels.to(self.dtype)).float()
        return vectors[:, :, None, None], present
