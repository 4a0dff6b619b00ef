"""The paper's condition: c = concat(M, C_1, …, C_K), at the image's full size.

M is the one-hot label map; C_i is an empty canvas with the crop of class i pasted
at its place (HeteroTissue-Diffuse, section 3). A dropped map or crop is all zeros;
so is nothing else, since a map always has a one at every pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.diffusion.crops import Crop


def condition_width(classes: int) -> int:
    """Channels of the condition for `classes` classes, background included."""
    return classes + 3 * (classes - 1)


def condition_tensor(
    labels: NDArray[np.uint8],
    crops: Sequence[Sequence[Crop]],
    classes: int,
    *,
    use_map: Sequence[bool] | None = None,
    use_crops: Sequence[bool] | None = None,
) -> Tensor:
    """Lay label maps and crops out as the model's condition.

    Args:
        labels: uint8 (batch, height, width), values below `classes`.
        crops: crops of each image.
        classes: number of classes, background included.
        use_map, use_crops: per image, False drops that condition.

    Returns:
        float32 (batch, condition_width(classes), height, width): one-hot map, then the
        canvases of classes 1, 2, … as RGB in [-1, 1].
    """
    batch, height, width = labels.shape
    out = np.zeros((batch, condition_width(classes), height, width), np.float32)
    for index in range(batch):
        if use_map is None or use_map[index]:
            np.put_along_axis(out[index], labels[index][None].astype(np.int64), 1.0, axis=0)
        if use_crops is None or use_crops[index]:
            for crop in crops[index]:
                start = classes + 3 * (crop.label - 1)
                side = crop.pixels.shape[0]
                pixels = crop.pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
                rows, columns = slice(crop.y, crop.y + side), slice(crop.x, crop.x + side)
                out[index, start : start + 3, rows, columns] = pixels
    return torch.from_numpy(out)


class ConditionEncoder(nn.Module):
    """Brings the condition from pixels to the latent grid by strided convolutions."""

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


def adapt_first_layer(weight: Tensor, source: Sequence[str], target: Sequence[str]) -> Tensor:
    """Carry the class-bound weights of `ConditionEncoder.first` over to other classes.

    Classes of the same name keep their weights; others start from the mean over the
    source's classes.

    Args:
        weight: (out, condition_width(len(source)), 3, 3).
        source, target: class names, background first.

    Returns:
        (out, condition_width(len(target)), 3, 3).
    """
    maps = weight[:, : len(source)]
    canvases = weight[:, len(source) :].reshape(len(weight), len(source) - 1, 3, 3, 3)
    where = {name: index for index, name in enumerate(source)}
    new_maps = [maps[:, where[name]] if name in where else maps[:, 1:].mean(1) for name in target]
    new_canvases = [
        canvases[:, where[name] - 1] if name in where else canvases.mean(1) for name in target[1:]
    ]
    return torch.cat([torch.stack(new_maps, 1), torch.cat(new_canvases, 1)], 1)
