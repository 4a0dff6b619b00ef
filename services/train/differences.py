"""Weights as a coarse difference from known ones: a byte each, where the two are much alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ":scale"
LEVELS = 127


def difference(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as their difference from those of `base`.

    Matrices and kernels become int8, with a scale for each row (`<name>:scale`, float16); other
    tensors are kept whole, in half precision.

    Raises:
        ValueError: `base` has other names or shapes.
    """
    if {name: value.shape for name, value in tensors.items()} != {
        name: value.shape for name, value in base.items()
    }:
        raise ValueError("these weights have other layers than those that they are compared with")
    found = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            found[name] = value.half()
            continue
        rows = (value.float() - base[name].float()).flatten(1)
        # A larger step takes the rounding of the scale to half precision.
        scale = (rows.abs().amax(1) / (LEVELS - 0.5)).half()
        steps = rows / scale.float().clamp_min(1e-12).unsqueeze(1)
        found[name] = steps.round().clamp(-LEVELS, LEVELS).to(torch.int8).reshape(value.shape)
        found[name + SCALE] = scale
    return found


def restored(found: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `difference`, float32."""
    tensors = {}
    for name, value in found.items():
        if name.endswith(SCALE):
            continue
        tensors[name] = value.float()
        if (scale := found.get(name + SCALE)) is not None:
            rows = value.float().flatten(1) * scale.float().unsqueeze(1)
            tensors[name] = base[name].float() + rows.reshape(value.shape)
    return tensors
