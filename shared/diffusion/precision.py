"""Mixed precision, on devices that are fast at it."""

from __future__ import annotations

import torch
from torch import nn


def autocast(device: str, precision: str) -> torch.autocast:
    """Compute in 'bf16' by autocast, or ('fp32') in what tensors have.

    A CPU without bf16 instructions computes in fp32 all the same: it would take several times as
    long for convolutions, and eighty times as long for matrix products.
    """
    return torch.autocast(_kind(device), torch.bfloat16, enabled=_casts(device, precision))


def cast_weights(network: nn.Module, device: str, precision: str) -> None:
    """Cast weights once that `autocast` casts anew each time that it is entered.

    What the network computes under it stays the same to the bit.
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
