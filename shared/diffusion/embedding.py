"""Conditioning by an embedding of each crop: what the paper compares raw crops with.

As `regional` in all but one thing: a crop is a single vector, what an ImageNet encoder
makes of it, and not the latents of its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import timm
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor

from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import Encode, Tensors
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
    ) -> None:
        super().__init__(
            classes, latent_channels, factor, channels, layers, attention, condition_channels, first
        )
        known = REGISTRY[ENCODER]
        self.encoder = timm.create_model(known.architecture, **known.options)
        self.encoder.requires_grad_(False)

    def start_encoder(self) -> None:
        """Load the encoder's published weights. Raises `InputError` without their package."""
        state = packaged_state(REGISTRY[ENCODER].package, self.encoder)
        self.encoder.load_state_dict({k: v for k, v in state.items() if "classifier" not in k})

    def lay_out(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        use_map: Sequence[bool],
        use_crops: Sequence[bool],
        encode: Encode,
    ) -> Tensors:
        """Return what `RegionalDenoiser.lay_out` does, with one place for each crop."""
        flat = [crop for own in crops for crop in own]
        vectors = iter(self._vectors([crop.pixels for crop in flat]))
        laid = super().lay_out(labels, crops, use_map, use_crops, encode)
        batch, most = laid["crops"].shape[:2]
        embedded = torch.zeros(batch, most, self.crop_channels, 1, 1, device=self.device)
        for index, own in enumerate(crops):
            for number in range(len(own)):
                embedded[index, number, :, 0, 0] = next(vectors)
        present = laid["present"].flatten(2).any(2)[:, :, None, None]
        return {**laid, "crops": embedded, "present": present}

    @torch.no_grad()
    def _vectors(self, crops: list[UInt8]) -> Tensor:
        """Encode crops, (n, dim)."""
        if not crops:
            return torch.zeros(0, self.crop_channels, device=self.device)
        side = REGISTRY[ENCODER].size
        images = np.stack(
            [cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in crops]
        )
        pixels = normalized(torch.from_numpy(images).to(self.device), IMAGENET)
        vectors: Tensor = self.encoder.eval()(pixels.to(self.dtype)).float()
        return vectors
