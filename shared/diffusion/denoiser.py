"""What every denoiser can do, whatever its conditioning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from numpy.typing import NDArray
from torch import Tensor

from shared.diffusion.crops import Crop

TIME_SCALE = 1000.0

Tensors = dict[str, Tensor]
Encode = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] to normalized latents."""


class Denoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the flow's velocity v = ε - x0 from a noisy latent and its condition."""

    @abstractmethod
    def lay_out(
        self,
        labels: NDArray[np.uint8],
        crops: Sequence[Sequence[Crop]],
        use_map: Sequence[bool],
        use_crops: Sequence[bool],
        encode: Encode,
    ) -> Tensors:
        """Lay label maps and crops out as tensors, on this network's device.

        Args:
            labels: uint8 (batch, H, W).
            crops: of each image.
            use_map, use_crops: per image, False drops that condition.
            encode: the autoencoder's encoder.
        """

    @abstractmethod
    def encode_condition(self, condition: Tensors) -> Tensors:
        """Encode a condition once per image; every step reuses it. Rows are images."""

    def encode_branches(
        self,
        labels: NDArray[np.uint8],
        crops: Sequence[Sequence[Crop]],
        branches: Sequence[tuple[bool, bool]],
        encode: Encode,
    ) -> Tensors:
        """Encode images' conditions, branch after branch: (map given, crops given)."""
        batch, count = len(labels), len(branches)
        condition = self.lay_out(
            np.tile(labels, (count, 1, 1)),
            list(crops) * count,
            [given for given, _ in branches for _ in range(batch)],
            [given for _, given in branches for _ in range(batch)],
            encode,
        )
        return self.encode_condition(condition)

    @staticmethod
    def join(parts: Sequence[Tensors]) -> Tensors:
        """Join encoded conditions of several groups of images into those of one batch."""
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def first(encoded: Tensors, rows: int) -> Tensors:
        """The encoded conditions of the first rows."""
        return {name: value[:rows] for name, value in encoded.items()}

    @abstractmethod
    def forward(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        """Predict the velocity.

        Args:
            sample: (batch, latent_channels, h, w), x_t = (1 - t) x0 + t ε.
            time: (batch,), t in [0, 1]; every row may have its own.
            encoded: of `encode_condition`.
        """

    @staticmethod
    @abstractmethod
    def adapted(state: Tensors, source: list[str], target: list[str]) -> Tensors:
        """Carry weights over from classes `source` to classes `target` (names)."""
