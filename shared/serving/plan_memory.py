"""How much GPU memory a TensorRT plan of the denoiser reserves, and how many rows fit.

TensorRT reserves memory for the largest batch when a plan is loaded, and Triton for its inputs.
The inputs are known; the activations are estimated from one plan that was built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from shared.contracts.recipe import DenoiserRecipe
from shared.serving.protocol import MAX_ROWS, Tensor

BUDGET = 8 << 30
"""Bytes that a plan may reserve: what is left of a GPU of 24 GB beside the other networks."""

MAPS, SCORES = 25, 1
"""Feature maps of the largest level, and matrices of attention scores, that are held at a time.

With these, 64 rows of `base` with 364 tokens take 0.96 GB, as TensorRT for RTX reserved for them.
"""

_BF16, _FP32 = 2, 4


def row_bytes(recipe: DenoiserRecipe, inputs: Sequence[Tensor], side: int, tokens: int) -> int:
    """Estimate the bytes that one row of the denoiser's largest batch takes.

    Args:
        recipe: the denoiser's recipe.
        inputs: its inputs.
        side: side of the latents, pixels.
        tokens: largest number of crop tokens.
    """
    given = sum(math.prod(tokens if n == -1 else n for n in each.dims) for each in inputs)
    places = [(side >> level) ** 2 for level in range(len(recipe.channels))]
    maps = max(own * count for own, count in zip(recipe.channels, places, strict=True))
    scores = max(
        (
            max(1, own // recipe.head_width) * count * max(count, tokens)
            for own, count, attends in zip(recipe.channels, places, recipe.attention, strict=True)
            if attends
        ),
        default=0,
    )
    return given * _FP32 + (MAPS * maps + SCORES * scores) * _BF16


def plan_rows(row: int) -> int:
    """Return the rows of a plan's largest batch: a power of two of at most `MAX_ROWS`."""
    return max(1, min(MAX_ROWS, 1 << (BUDGET // row).bit_length() - 1)) if row <= BUDGET else 1
