"""Conditioning by an embedding of each crop: what the paper compares raw crops with.

As `regional` in all but one thing: a crop is a single vector, what an ImageNet encoder
makes of it, and not the latents of its pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import timm
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor

from shared.diffusion.denoiser import Encode
from shared.diffusion.regional import RegionalDenoiser
from shared.encoders import IMAGENET, REGISTRY, normalized, packaged_state

ENCODER = "efficientnet-lite0"
UInt8 = NDArray[np.uint8]


class EmbeddingDenoiser(RegionalDenoiser, ModelMixin):  # type: ignore[misc]  # diffusers wants it named here
    """A `RegionalDenoiser` whose crops are vectors. Its frozen encoder is saved with it."""

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
    ) -> None:
        super().__init__(
            classes, latent_channels, factor, channels, layers, attention, condition_channels,
            first, crop_side,
        )  # fmt: skip
        known = REGISTRY[ENCODER]
        self.encoder = timm.create_model(known.architecture, **known.options)
        self.encoder.requires_grad_(False)

    def start_encoder(self) -> None:
        """Load the encoder's published weights. Raises `InputError` without their package."""
        state = packaged_state(REGISTRY[ENCODER].package, self.encoder)
        self.encoder.load_state_dict({k: v for k, v in state.items() if "classifier" not in k})

    @torch.no_grad()
    def _represent(self, crops: list[UInt8], encode: Encode) -> tuple[Tensor, Tensor]:
        """Turn each crop into one place with the encoder's vector, (n, dim, 1, 1)."""
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
