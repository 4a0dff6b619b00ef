"""Appearances of a field: sets of crops, each at a place, that fade into each other between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.diffusion.crops import Crop


@dataclass(frozen=True)
class Appearance:
    """A crop of each class, and the place in a field where tissue looks like them.

    Attributes:
        crops: class index → crop, in the order of the classes; the place in a crop does not matter.
        x, y: the place, as shares of the field's width and height, 0 to 1.
    """

    crops: dict[int, Crop]
    x: float = 0.5
    y: float = 0.5

    @classmethod
    def of(cls, crops: Iterable[Crop], x: float = 0.5, y: float = 0.5) -> Appearance:
        """Return the appearance of some crops, at most one of each class."""
        ordered = sorted(crops, key=lambda crop: crop.label)
        return cls({crop.label: crop for crop in ordered}, x, y)


def nearness(
    appearances: Sequence[Appearance], height: int, width: int, ys: Tensor, xs: Tensor
) -> Tensor:
    """Return the share that each appearance has at places of a field, with sum 1.

    At the place of an appearance its share is 1. Between, shares change smoothly with the
    distances, and an appearance more than twice as far away as the nearest one has none.

    Args:
        appearances: at least one.
        height, width: size of the field, in any unit of length.
        ys, xs: rows and columns, in that unit.

    Returns:
        float32 (appearances, rows, columns).
    """
    places = torch.tensor([(own.y * height, own.x * width) for own in appearances])
    down, right = (
        side.float().unsqueeze(0) - places[:, axis : axis + 1] for axis, side in enumerate((ys, xs))
    )
    away = torch.hypot(down.unsqueeze(2), right.unsqueeze(1)).clamp_min(1e-3)
    near = (2 * away.amin(0) / away - 1).clamp_min(0)
    weight = near * near * (3 - 2 * near)
    return weight / weight.sum(0)
