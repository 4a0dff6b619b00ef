"""The autoencoder: the embedded one, a small one from scratch, or any diffusers VAE by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor

from shared.contracts.recipe import EMBEDDED_VAE, VaeRecipe
from shared.errors import InputError

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderDC

EMBEDDED = Path(__file__).parent / "embedded_vae"
"""Folder of a VAE trained on real tissue, see its README; recipes name it 'embedded'."""

GPU_PIXELS = 2**22
"""Pixels that a GPU decodes at a time, at most; a pixel takes some hundred bytes per layer."""

CPU_PIXELS = 2**16
"""Pixels that a CPU decodes at a time, at most; few, so that features fit into its caches."""

MAX_UNTILED = 1024
"""Side in pixels of the largest image that is decoded in one piece."""


def make_vae(recipe: VaeRecipe) -> Autoencoder:
    """Make the recipe's VAE: an untrained one, or the pretrained one that it names.

    Raises:
        InputError: the named VAE is neither a folder in diffusers' format nor on the hub.
    """
    if recipe.pretrained is not None:
        named = EMBEDDED if recipe.pretrained == EMBEDDED_VAE else recipe.pretrained
        try:
            return read_vae(named)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the VAE {recipe.pretrained!r}: {error}. Give a folder in diffusers "
                "format, or a hub id and access to the hub"
            ) from error
    levels = len(recipe.channels)
    if recipe.architecture == "dc":
        # no blocks at full resolution, where they cost most
        channels, no_scales = (recipe.channels[0], *recipe.channels), ((),) * (levels + 1)
        return AutoencoderDC(
            latent_channels=recipe.latent_channels,
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            encoder_layers_per_block=(0, *(recipe.layers,) * levels),
            decoder_layers_per_block=(0, *(recipe.layers + 1,) * levels),
            encoder_qkv_multiscales=no_scales,
            decoder_qkv_multiscales=no_scales,
        )
    return AutoencoderKL(
        block_out_channels=recipe.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=recipe.layers,
        latent_channels=recipe.latent_channels,
        norm_num_groups=min(32, *recipe.channels) // 2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def read_vae(source: str | Path) -> Autoencoder:
    """Load a VAE from a folder in diffusers' format, or from a hub by its id."""
    name = AutoencoderKL.load_config(source).get("_class_name")
    kind: Any = AutoencoderDC if name == "AutoencoderDC" else AutoencoderKL
    vae = kind.from_pretrained(source, use_safetensors=True, low_cpu_mem_usage=False)
    vae.register_to_config(_name_or_path="")  # do not save the name of a temporary folder
    return vae.eval()


def vae_factor(vae: Autoencoder) -> int:
    """Return the number of pixels per latent pixel, along one axis."""
    if isinstance(vae, AutoencoderDC):
        return int(vae.spatial_compression_ratio)
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 NHWC pixels to float32 NCHW images in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Map NCHW images in [-1, 1] to uint8 NHWC pixels."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.permute(0, 2, 3, 1).to(torch.uint8)


def encode_raw(vae: Autoencoder, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] to raw latents: the mode, not normalized."""
    encoded = vae.encode(images.to(vae.dtype))
    raw: Tensor = encoded.latent if isinstance(vae, AutoencoderDC) else encoded.latent_dist.mode()
    return raw


def encode_latents(vae: Autoencoder, images: Tensor) -> Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] to normalized latents: (raw - shift) · scale."""
    shift = vae.config.get("shift_factor") or 0.0
    latents: Tensor = (encode_raw(vae, images) - shift) * vae.config.scaling_factor
    return latents


def to_raw(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Undo the normalization of `encode_latents`."""
    raw: Tensor = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return raw


def decode_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Decode normalized latents to images (B, 3, H, W), about in [-1, 1].

    To bound the memory, only `decoded_at_a_time` images are decoded together, and images with a
    side above `MAX_UNTILED` are decoded in overlapping tiles.
    """
    raw = to_raw(vae, latents).to(vae.dtype)
    _tile(vae)
    pixels = vae_factor(vae) ** 2 * raw.shape[2] * raw.shape[3]
    parts = torch.split(raw, decoded_at_a_time(pixels, raw.device.type))
    images = [vae.decode(part, return_dict=False)[0] for part in parts]
    return torch.cat(images) if len(images) > 1 else images[0]


def decoded_at_a_time(pixels: int, device: str) -> int:
    """Return the number of images of `pixels` pixels that a device ('cuda:0') decodes together."""
    return max(1, (CPU_PIXELS if device == "cpu" else GPU_PIXELS) // pixels)


def _tile(vae: Autoencoder) -> None:
    """Make the VAE work on images above `MAX_UNTILED` in tiles that overlap by a quarter."""
    if isinstance(vae, AutoencoderDC):
        vae.enable_tiling(MAX_UNTILED, MAX_UNTILED, MAX_UNTILED * 3 // 4, MAX_UNTILED * 3 // 4)
    else:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = (
            MAX_UNTILED,
            MAX_UNTILED // vae_factor(vae),
        )
