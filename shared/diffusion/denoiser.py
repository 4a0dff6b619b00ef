"""The base class of denoisers; each subclass is a way to condition them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.recipe import DenoiserRecipe
from shared.diffusion.autoencoder import Autoencoder, vae_factor
from shared.diffusion.crops import Crop

TIME_SCALE = 1000.0
"""Factor from the time t in [0, 1] to the timesteps that diffusers' networks expect."""

Tensors = dict[str, Tensor]
"""Tensors by name."""

KEPT = "kept_"
"""Begins the names of the tensors that `Denoiser.keep` adds to an encoded condition."""

Encode = Callable[[Tensor], Tensor]
"""Encodes images (B, 3, H, W) in [-1, 1] to normalized latents."""


def distinct_rows(rows: Tensor) -> Tensor:
    """Return the first row alone if all rows are views of it, else all."""
    return rows if rows.stride(0) else rows[:1]


class Denoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts the flow's velocity v = ε - x0 from a noisy latent and its condition.

    Attributes:
        places_crops: whether a crop's place in the image counts.
    """

    places_crops: ClassVar[bool] = False

    @classmethod
    def untrained(
        cls,
        recipe: DenoiserRecipe,
        size: int,
        classes: Classes,
        vae: Autoencoder,
        **settings: Any,
    ) -> Self:
        """Make a recipe's denoiser for images of `size` pixels and latents of `vae`.

        Args:
            recipe: channels, layers and attention of the denoiser.
            size: side of the images.
            classes: classes of the label maps.
            vae: the autoencoder of the latents.
            settings: further arguments of a subclass's constructor.
        """
        return cls(
            classes=len(classes),
            latent_channels=vae.config.latent_channels,
            factor=vae_factor(vae),
            channels=recipe.channels,
            layers=recipe.layers,
            attention=recipe.attention,
            condition_channels=recipe.condition_channels,
            first=classes.first,
            **settings,
        )

    @abstractmethod
    def lay_out(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        use_map: Sequence[bool],
        use_crops: Sequence[bool],
        encode: Encode,
    ) -> Tensors:
        """Turn label maps and crops into tensors on the network's device.

        Args:
            labels: uint8 (batch, H, W).
            crops: the crops of each image.
            use_map, use_crops: per image, False drops that condition.
            encode: the autoencoder's encoder.
        """

    @abstractmethod
    def encode_condition(self, condition: Tensors) -> Tensors:
        """Encode a condition of `lay_out`, one row per image; every step reuses the result."""

    def encode_branches(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        branches: Sequence[tuple[bool, bool]],
        encode: Encode,
    ) -> Tensors:
        """Encode the conditions of all images for each guidance branch (use map, use crops).

        Rows of the result: all images of the first branch, then of the second, and so on.
        """
        batch, count = len(labels), len(branches)
        condition = self.lay_out(
            np.tile(labels, (count, 1, 1)),
            list(crops) * count,
            [given for given, _ in branches for _ in range(batch)],
            [given for _, given in branches for _ in range(batch)],
            encode,
        )
        return self.encode_condition(condition)

    def keep(self, encoded: Tensors) -> Tensors:
        """Add to an encoded condition what each step would compute again from it alone.

        With and without, `forward` gives the same. By default there is nothing to add.
        """
        return encoded

    @staticmethod
    def join(parts: Sequence[Tensors]) -> Tensors:
        """Join the encoded conditions of several groups of images into one batch."""
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def first(encoded: Tensors, rows: int) -> Tensors:
        """Return the encoded conditions of the first `rows` rows."""
        return {name: value[:rows] for name, value in encoded.items()}

    @abstractmethod
    def forward(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        """Predict the velocity.

        Args:
            sample: (batch, latent_channels, h, w), x_t = (1 - t) x0 + t ε.
            time: (batch,), t in [0, 1]; it may differ from row to row.
            encoded: the result of `encode_condition`.

        Returns:
            (batch, latent_channels, h, w).
        """

    @abstractmethod
    def adapted(self, state: Tensors, source: list[str], target: list[str]) -> Tensors:
        """Adapt weights of another denoiser, with the classes `source`, to this one's (names).

        Raises:
            KeyError: the weights are of another conditioning.
        """
