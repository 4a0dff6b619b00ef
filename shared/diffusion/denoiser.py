"""The denoiser: a UNet over latents whose extra input is the encoded condition."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from shared.diffusion.condition import ConditionEncoder, condition_width

TIME_SCALE = 1000.0


class Denoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the flow's velocity v = ε - x0 from a noisy latent and its condition.

    Args:
        classes: number of classes, background included.
        latent_channels: channels of the latent.
        factor: pixels per latent pixel.
        channels: of the UNet's levels.
        layers: residual layers per level.
        attention: per level, whether it has self-attention.
        condition_channels: channels of the encoded condition.
    """

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
    ) -> None:
        super().__init__()
        self.condition = ConditionEncoder(condition_width(classes), condition_channels, factor)
        self.unet = UNet2DModel(
            in_channels=latent_channels + condition_channels,
            out_channels=latent_channels,
            block_out_channels=channels,
            layers_per_block=layers,
            down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attention],
            up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in attention[::-1]],
            attention_head_dim=32,
            norm_num_groups=32,
        )

    def encode_condition(self, condition: Tensor) -> Tensor:
        """Encode (batch, condition_width, H, W) once per image; every step reuses it."""
        encoded: Tensor = self.condition(condition)
        return encoded

    def forward(self, sample: Tensor, time: Tensor, encoded: Tensor) -> Tensor:
        """Predict the velocity.

        Args:
            sample: (batch, latent_channels, h, w), x_t = (1 - t) x0 + t ε.
            time: (batch,), t in [0, 1]; every row may have its own.
            encoded: (batch, condition_channels, h, w) of `encode_condition`.
        """
        joined = torch.cat([sample, encoded], 1)
        velocity: Tensor = self.unet(joined, time * TIME_SCALE, return_dict=False)[0]
        return velocity


def denoiser_config(denoiser: Denoiser) -> dict[str, Any]:
    """The arguments that `denoiser` was made with."""
    return {key: value for key, value in denoiser.config.items() if not key.startswith("_")}
