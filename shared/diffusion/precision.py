"""Mixed precision, on devices where it is fast."""

from __future__ import annotations

import torch
from torch import nn


def autocast(device: str, precision: str) -> torch.autocast:
    """Return a context that computes in bf16 by autocast ('bf16'), or changes nothing ('fp32').

    On a CPU without bf16 instructions it changes nothing either, because bf16 would take several
    times as long for convolutions, and eighty times as long for matrix products.
    """
    return torch.autocast(_kind(device), torch.bfloat16, enabled=_casts(device, precision))


def cast_weights(network: nn.Module, device: str, precision: str) -> None:
    """Cast weights to bf16 once, because `autocast` would cast them each time it is entered.

    The outputs under `autocast` stay the same to the bit.
    """
    if _casts(device, precision):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(torch.bfloat16)


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _casts(device: str, precision: str) -> bool:
    fast = _kind(device) != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return precision == "bf16" and fast
