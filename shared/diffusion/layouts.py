"""Sampled layouts: a small generative model of label maps, given the share of each class.

A label map is held as the share of each class in the cells of a coarse grid, so that borders keep
their place within a cell. Flow matching learns these grids. A sampled grid is enlarged smoothly,
and each pixel takes the class of the largest share. So only the shares of a real map reach a
sampled one, not its layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional

from shared.arrays import UInt8
from shared.contracts.recipe import LayoutRecipe
from shared.diffusion.flow import draw_noise, sample_flow

STEPS = 20
"""Number of steps in which a grid is sampled."""

FOLDER = "layouts"
"""Folder of the layout model in the folder of a published model."""


def make_layouts(recipe: LayoutRecipe, labels: int) -> UNet2DModel:
    """Make an untrained layout model for label maps with values from 0 to `labels` - 1."""
    return UNet2DModel(
        sample_size=recipe.side,
        in_channels=2 * labels,
        out_channels=labels,
        block_out_channels=recipe.channels,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D" for _ in recipe.channels[1:])),
        up_block_types=(*("AttnUpBlock2D" for _ in recipe.channels[1:]), "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
    )


def read_layouts(folder: Path) -> UNet2DModel:
    """Load a layout model from its folder."""
    model: UNet2DModel = UNet2DModel.from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False
    )
    return model.eval()


def to_grid(labels: Tensor, count: int, side: int) -> Tensor:
    """Return the shares of the classes in each cell, scaled to [-1, 1], (B, count, side, side).

    Args:
        labels: label maps, integers from 0 to `count` - 1, (B, h, w), h and w at least `side`.
        count: number of labels.
        side: cells along each axis.
    """
    shares = functional.one_hot(labels.long(), count).permute(0, 3, 1, 2).float()
    return 2 * functional.adaptive_avg_pool2d(shares, side) - 1


def to_labels(grid: Tensor, size: int | tuple[int, int], allowed: Tensor | None = None) -> UInt8:
    """Turn grids (B, count, rows, columns) into label maps, uint8 (B, *size).

    `size` is the height and width, or one for both. `allowed`, bool (B, count), names the labels
    that each map may have; None: all.
    """
    fine = functional.interpolate(grid.float(), size, mode="bicubic", align_corners=False)
    if allowed is not None:
        fine = fine.masked_fill(~allowed[..., None, None], -torch.inf)
    labels: UInt8 = fine.argmax(1).to(torch.uint8).cpu().numpy()
    return labels


def velocity(model: Any, grid: Tensor, times: Tensor, shares: Tensor) -> Tensor:
    """Return the velocity v = ε - x0 that the model sees in noisy grids, like `grid`.

    Args:
        model: the layout model.
        grid: x_t, (B, count, side, side).
        times: t from 0 (grid) to 1 (noise), (B,).
        shares: share of each label in the whole map, (B, count).
    """
    asked = (2 * shares - 1)[..., None, None].expand_as(grid)
    found: Tensor = model(torch.cat([grid, asked], 1), 1000 * times).sample
    return found


@torch.inference_mode()
def sample_layouts(
    model: UNet2DModel, shares: Sequence[Sequence[float]], seeds: Sequence[int], size: int
) -> UInt8:
    """Sample label maps, uint8 (B, size, size).

    Args:
        model: the layout model.
        shares: share of each label in each map, label 0 first; B rows, each with sum 1. A map
            shows no label of share 0, and nearly the asked shares of the others.
        seeds: seed of each map.
        size: side of the maps, pixels.
    """
    asked = torch.tensor(shares, dtype=torch.float32, device=model.device)
    side = int(model.config["sample_size"])
    noise = draw_noise(seeds, (asked.shape[1], side, side)).to(model.device)

    def at(sample: Tensor, time: float) -> Tensor:
        return velocity(model, sample, torch.full((len(sample),), time), asked)

    return to_labels(sample_flow(at, noise, STEPS), size, asked > 0)
