"""Latents of all views of the training regions, computed once before the denoiser is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from services.train.data import Batches
from shared.contracts.train import training_key
from shared.diffusion.autoencoder import Autoencoder, encode_latents, to_unit
from shared.diffusion.precision import autocast
from shared.storage import Store

Float16 = NDArray[np.float16]

SHARD_REGIONS = 256
"""Number of regions whose latents are one shard."""

BATCH = 16
"""Number of views that are encoded at a time."""


def latents_key(run: str, shard: str) -> str:
    """Return the key of the latents of one shard."""
    return training_key(run, f"latents/{shard}.safetensors")


def encode_views(
    vae: Autoencoder,
    batches: Batches,
    span: tuple[int, int],
    device: str,
    precision: str,
    report: Callable[[int, int], None],
) -> bytes:
    """Encode all views of a span of regions.

    Args:
        vae: the autoencoder.
        batches: the regions and their views.
        span: number of the first region, and of the region after the last.
        device: device of the autoencoder.
        precision: 'fp32' or 'bf16', see `autocast`.
        report: called with the number of finished regions and the number of all regions.

    Returns:
        A safetensors file with `latents`, float16 (regions, views, C, h, w).
    """
    regions = []
    with torch.no_grad(), autocast(device, precision):
        for region in range(*span):
            views = torch.split(torch.from_numpy(batches.view_images(region)), BATCH)
            encoded = [encode_latents(vae, to_unit(part.to(device))) for part in views]
            regions.append(torch.cat(encoded).half().cpu())
            report(region + 1 - span[0], span[1] - span[0])
    latents = torch.stack(regions).contiguous()  # as safetensors requires
    return safetensors.torch.save({"latents": latents})


def read_latents(store: Store, run: str, shards: list[str]) -> Float16:
    """Read the latents of all shards: float16 (regions, views, C, h, w)."""
    parts = [safetensors.numpy.load(store.get(latents_key(run, s)))["latents"] for s in shards]
    return np.concatenate(parts)
