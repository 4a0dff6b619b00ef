"""Attention in training is the fused attention of sampling, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shared.diffusion.region_attention import attend


@pytest.mark.parametrize("masked", [False, True])
def test_training_attends_as_sampling_does(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)

    def tensor(rows: int) -> Tensor:
        return torch.randn(2, 3, rows, 8, generator=draw, requires_grad=True)

    query, key, value = tensor(16), tensor(5), tensor(5)
    bias = torch.zeros(2, 1, 16, 5)
    bias[..., 3:] = -1e4
    given = bias if masked else None
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=given)
    found = attend(query, key, value, given)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=draw)
    sources = (query, key, value)
    wanted = torch.autograd.grad(expected, sources, weights)
    torch.testing.assert_close(torch.autograd.grad(found, sources, weights), wanted)
    with torch.no_grad():
        torch.testing.assert_close(attend(query.detach(), key, value, given), expected.detach())
