"""Mixed precision, on devices that are fast at it."""

from __future__ import annotations

import torch


def autocast(device: str, precision: str) -> torch.autocast:
    """Compute in 'bf16' by autocast, or ('fp32') in what tensors have.

    A CPU without bf16 instructions computes in fp32 all the same: it would take several times as
    long for convolutions, and eighty times as long for matrix products.
    """
    kind = device.partition(":")[0]
    fast = kind != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16" and fast)
