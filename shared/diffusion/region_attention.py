"""Attention of each place of an image to the tokens of crops of its own classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from shared.diffusion.denoiser import KEPT, Tensors

MOST_SCORES = 1 << 17
"""Most pairs of a place and a token whose attention is computed without a fused kernel."""


class RegionAttention:
    """Attention for diffusers' transformer blocks, with one bias per level of the UNet.

    Args:
        name: name of the layer, by which its keys and values are kept.
    """

    def __init__(self, name: str) -> None:
        self.key, self.value = (f"{KEPT}{kind}_{name}" for kind in ("key", "value"))

    def project(self, attn: Any, source: Tensor) -> Tensors:
        """Return the layer's keys and values of tokens, (B, tokens, C)."""
        return {self.key: attn.to_k(source), self.value: attn.to_v(source)}

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        regions: Tensors | None = None,
    ) -> Tensor:
        """Attend from each place to the image, or to the tokens of crops with the level's bias."""
        batch, count, _ = hidden_states.shape
        source, bias, known = hidden_states, None, Tensors()
        if encoder_hidden_states is not None and regions is not None:
            source, known = encoder_hidden_states, regions
            bias = regions[bias_name(count)].to(hidden_states.dtype)
        if self.key not in known:
            known = self.project(attn, source)
        query, key, value = (
            x.view(batch, x.shape[1], attn.heads, -1).transpose(1, 2)
            for x in (attn.to_q(hidden_states), known[self.key], known[self.value])
        )
        mixed = attend(query, key, value, bias)
        mixed = mixed.transpose(1, 2).reshape(batch, count, -1)
        out: Tensor = attn.to_out[0](mixed.to(query.dtype))
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return the attention of queries (B, heads, places, C) to keys and values of tokens.

    In training on a CPU the matrices are multiplied one by one, because the gradients of
    PyTorch's fused attention take longer there for so few places.
    """
    places, tokens = query.shape[2], key.shape[2]
    fused = query.device.type != "cpu" or not query.requires_grad or places * tokens > MOST_SCORES
    if fused:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    mixed: Tensor = (scores if bias is None else scores + bias).softmax(3) @ value
    return mixed


def bias_name(places: int) -> str:
    """Return the name of the attention bias of the UNet's level with `places` places."""
    return f"bias_{places}"
