"""Windows that cover a large grid: where they begin, how they are weighed, and their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

BATCH = 16
"""Greatest number of windows, side by side, that the denoiser sees at a time."""

GOLDEN = 0.618
"""Shift of the grid from step to step / stride; it keeps borders of all steps apart."""


def window_starts(length: int, window: int, stride: int, shift: int) -> list[int]:
    """Return where windows of a shifted grid begin, so that they cover a length without gaps."""
    end = length - window
    return sorted({min(max(0, at), end) for at in range(-(shift % stride), end + stride, stride)})


def even_batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield items in batches of about the same size: a window alone costs more than among others.

    Args:
        items: at least one.
    """
    count = -(-len(items) // BATCH)
    bounds = [len(items) * number // count for number in range(count + 1)]
    for first, last in pairwise(bounds):
        yield items[first:last]


def window_weights(window: int) -> Tensor:
    """Return the weights of a window's places, which fall towards its borders, (window, window)."""
    shape = torch.arange(window) - (window - 1) / 2
    ramp = 1 - 2 * shape.abs() / window
    return ramp.unsqueeze(1) * ramp
