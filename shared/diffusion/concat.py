"""The paper's conditioning: c = concat(M, C_1, …, C_K), at the image's full resolution.

M is the one-hot label map; C_i is an empty canvas with the crop of class i pasted
at its place (HeteroTissue-Diffuse, section 3). A dropped map or crop is all zeros.
Zeros are unambiguous, because a label map has a one at every pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from shared.arrays import UInt8
from shared.diffusion.crops import Crop
from shared.diffusion.denoiser import TIME_SCALE, Denoiser, Encode, Tensors


def condition_width(classes: int, first: int) -> int:
    """Return the number of channels of the condition; classes from `first` on have a canvas."""
    return classes + 3 * (classes - first)


def condition_tensor(
    labels: UInt8,
    crops: Sequence[Sequence[Crop]],
    classes: int,
    *,
    first: int,
    use_map: Sequence[bool],
    use_crops: Sequence[bool],
) -> Tensor:
    """Draw label maps and crops as channels.

    Args:
        labels: uint8 (batch, height, width), values below `classes`.
        crops: crops of each image.
        classes: number of classes, background included.
        first: index of the first class with a canvas.
        use_map, use_crops: per image, False drops that condition.

    Returns:
        float32 (batch, condition_width, height, width): the one-hot map, then the canvas of
        each class as RGB in [-1, 1].
    """
    batch, height, width = labels.shape
    out = np.zeros((batch, condition_width(classes, first), height, width), np.float32)
    for index in range(batch):
        if use_map[index]:
            np.put_along_axis(out[index], labels[index][None].astype(np.int64), 1.0, axis=0)
        if use_crops[index]:
            for crop in crops[index]:
                start = classes + 3 * (crop.label - first)
                side = crop.pixels.shape[0]
                pixels = crop.pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
                rows, columns = slice(crop.y, crop.y + side), slice(crop.x, crop.x + side)
                out[index, start : start + 3, rows, columns] = pixels
    return torch.from_numpy(out)


class ConditionEncoder(nn.Module):
    """Encodes the condition from the pixel grid to the latent grid by strided convolutions.

    Args:
        width: channels of the condition.
        channels: channels of the encoded condition.
        factor: pixels per latent pixel, a power of two.
    """

    def __init__(self, width: int, channels: int, factor: int) -> None:
        super().__init__()
        sides = factor.bit_length() - 1
        widths = [max(32, channels >> (sides - 1 - level)) for level in range(sides)]
        widths = [*widths[:-1], channels] if sides else [channels]
        self.first = nn.Conv2d(width, widths[0], 3, stride=2 if sides else 1, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        """Map (batch, width, H, W) to (batch, channels, H / factor, W / factor)."""
        hidden = functional.silu(self.first(condition))
        for layer in self.down:
            hidden = functional.silu(layer(hidden))
        encoded: Tensor = self.last(hidden)
        return encoded


class ConcatDenoiser(Denoiser):
    """A UNet on the noisy latent, concatenated with the encoded condition.

    Args:
        classes: number of classes, background included.
        latent_channels: channels of the latent.
        factor: pixels per latent pixel.
        channels: channels of the UNet's levels.
        layers: residual layers per level.
        attention: per level, whether it has self-attention.
        condition_channels: channels of the encoded condition.
        first: index of the first class with crops.
    """

    places_crops: ClassVar[bool] = True

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
        super().__init__()
        width = condition_width(classes, first)
        self.condition = ConditionEncoder(width, condition_channels, factor)
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

    def lay_out(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        use_map: Sequence[bool],
        use_crops: Sequence[bool],
        encode: Encode,
    ) -> Tensors:
        condition = condition_tensor(
            labels,
            crops,
            int(self.config.classes),
            first=int(self.config.first),
            use_map=use_map,
            use_crops=use_crops,
        )
        return {"channels": condition.to(self.device)}

    def encode_condition(self, condition: Tensors) -> Tensors:
        return {"features": self.condition(condition["channels"])}

    def forward(self, sample: Tensor, time: Tensor, encoded: Tensors) -> Tensor:
        joined = torch.cat([sample, encoded["features"]], 1)
        joined = joined.to(self.unet.dtype)
        velocity: Tensor = self.unet(joined, time * TIME_SCALE, return_dict=False)[0]
        return velocity

    def adapted(self, state: Tensors, source: list[str], target: list[str]) -> Tensors:
        name = "condition.first.weight"
        weight = adapt_first_layer(state[name], source, target, first=int(self.config.first))
        return {**state, name: weight}


def adapt_first_layer(
    weight: Tensor, source: Sequence[str], target: Sequence[str], *, first: int
) -> Tensor:
    """Carry the weights of `ConditionEncoder.first` over to other classes.

    Classes of the same name keep their weights; other classes get the mean over the source's
    classes.

    Args:
        weight: (out, width of the source, 3, 3), with or without a canvas for label 0.
        source, target: class names, background first.
        first: index of the first class of `target` with a canvas, 0 or 1.

    Returns:
        (out, width of the target, 3, 3).
    """
    maps = weight[:, : len(source)]
    canvases = weight[:, len(source) :].reshape(len(weight), -1, 3, 3, 3)
    bare = len(source) - canvases.shape[1]  # classes of the source without a canvas: 0 or 1
    where = {name: index for index, name in enumerate(source)}
    new_maps = [maps[:, where[name]] if name in where else maps[:, 1:].mean(1) for name in target]
    new_canvases = [
        canvases[:, where[name] - bare] if where.get(name, -1) >= bare else canvases.mean(1)
        for name in target[first:]
    ]
    return torch.cat([torch.stack(new_maps, 1), torch.cat(new_canvases, 1)], 1)
