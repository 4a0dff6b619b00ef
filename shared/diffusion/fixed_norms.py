"""A decoder whose norms have fixed statistics, so that it decodes a large image piece by piece.

A group norm takes its statistics over the whole image, so every pixel depends on every other, and
a piece that is decoded alone has another staining. With the statistics of some typical windows a
pixel depends only on the latents near it.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from shared.diffusion.autoencoder import Autoencoder, vae_factor

MAX_REACH = 16
"""Latent pixels beyond which a decoder's view is cut, because one with attention sees them all."""


def norm_statistics(vae: Autoencoder, latents: Tensor) -> dict[str, Tensor]:
    """Return the mean statistics of each group norm of a decoder over some images.

    Args:
        vae: the autoencoder.
        latents: raw latents of typical images (B, C, h, w).

    Returns:
        Name of the norm in the decoder → float32 (2, groups): mean and variance.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def watch(name: str, norm: nn.GroupNorm) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            groups = given[0].float().reshape(len(given[0]), norm.num_groups, -1)
            seen[name].append(torch.stack([groups.mean(2), groups.var(2, correction=0)]))

        return norm.register_forward_pre_hook(record)

    handles = [watch(name, norm) for name, norm in _norms(vae)]
    try:
        for row in torch.split(latents, 1):  # one by one, so that none depends on the others
            vae.decode(row.to(vae.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts, 1).mean(1) for name, parts in seen.items()}


def with_fixed_norms(vae: Autoencoder, statistics: dict[str, Tensor]) -> Autoencoder:
    """Return a copy of an autoencoder whose decoder's group norms use the given statistics."""
    fixed = copy.deepcopy(vae)
    for name, norm in list(_norms(fixed)):
        mean, variance = statistics[name].repeat_interleave(
            norm.num_channels // norm.num_groups, dim=1
        )
        batch_norm = nn.BatchNorm2d(norm.num_channels, norm.eps).eval()
        batch_norm.load_state_dict(
            {
                "weight": norm.weight, "bias": norm.bias, "running_mean": mean,
                "running_var": variance, "num_batches_tracked": torch.tensor(0),
            }
        )  # fmt: skip
        parent, _, own = name.rpartition(".")
        setattr(fixed.decoder.get_submodule(parent), own, batch_norm.to(norm.weight))
    return fixed


def decoder_reach(vae: Autoencoder) -> int:
    """Return how many latent pixels away, at most `MAX_REACH`, a decoder still sees.

    Args:
        vae: an autoencoder of `with_fixed_norms`.
    """
    side, factor = 2 * MAX_REACH + 1, vae_factor(vae)
    latents = torch.zeros(1, int(vae.config.latent_channels), side, side, dtype=vae.dtype)
    latents[..., MAX_REACH, MAX_REACH] = math.nan  # which reaches every pixel that sees it
    image = vae.decode(latents.to(vae.device), return_dict=False)[0]
    rows = image[0].isnan().any(0).any(1).nonzero()
    above = MAX_REACH - int(rows.min()) / factor
    below = (int(rows.max()) + 1) / factor - MAX_REACH - 1
    return math.ceil(max(above, below))


def _norms(vae: Autoencoder) -> list[tuple[str, nn.GroupNorm]]:
    modules = vae.decoder.named_modules()
    return [(name, norm) for name, norm in modules if isinstance(norm, nn.GroupNorm)]
