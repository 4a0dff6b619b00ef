"""Measure what an autoencoder's latents keep, and how much a denoiser has to learn in them.

    python benchmarks/latents.py STORE REGIONS [--vae embedded] [--split val]

The latents of training regions are taken as a stationary Gaussian with their spectrum. For
several strengths of noise (in standard deviations of the latents) the command prints the bits
per latent cell above the noise, and the PSNR of held-out regions decoded from latents with that
noise. It also prints the flow-matching loss of the best linear denoiser of all channels and
cells, beside the loss of one that sees a single number at a time: a denoiser learns the
difference in its first steps. It takes about a minute, so autoencoders can be compared before
any denoiser is trained. Of two with equal bits, the one with more decibels is better.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from torch import Tensor

from services.evaluate.reconstruction import BATCH
from shared.computing import prepare
from shared.contracts.base import Split
from shared.contracts.recipe import VaeRecipe
from shared.contracts.regions import RegionSet
from shared.diffusion.autoencoder import (
    Autoencoder,
    decode_latents,
    encode_latents,
    make_vae,
    to_unit,
)
from shared.diffusion.flow import draw_noise, draw_times
from shared.diffusion.precision import autocast
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.settings import settings
from shared.storage import Store, open_store

NOISES = (0.05, 0.1, 0.2, 0.35, 0.5)
TIMES = 400
SPECTRUM_REGIONS = 320
"""Training regions whose spectrum is measured."""
HELD_OUT = 64
"""Held-out regions that are decoded."""


def images(store: Store, record: RegionSet, split: Split, count: int) -> Tensor:
    """Read at most `count` images of a split, evenly spaced, (n, 3, h, w) in [-1, 1]."""
    index = RegionIndex(store, record, split)
    step = -(-len(index) // count)
    pixels = np.stack([index[number].image for number in range(0, len(index), step)])
    return to_unit(torch.from_numpy(pixels))


def latents(vae: Autoencoder, pixels: Tensor) -> Tensor:
    """Encode images in batches, (n, C, h, w)."""
    with autocast("cpu", "bf16"):
        return torch.cat([encode_latents(vae, part).float() for part in torch.split(pixels, BATCH)])


def spectrum(encoded: Tensor) -> Tensor:
    """Return the variances (h · w · C,) of independent Gaussians with the latents' spectrum.

    A Hann window comes first, because the borders of a region do not meet.
    """
    centred = encoded.double() - encoded.double().mean((0, 2, 3), keepdim=True)
    rows, columns = (torch.hann_window(n, periodic=False).double() for n in encoded.shape[2:])
    window = rows.unsqueeze(1) * columns
    window = window / window.square().mean().sqrt()
    waves = torch.fft.fft2(centred * window, norm="ortho")
    power = torch.einsum("nchw,ndhw->hwcd", waves, waves.conj()) / len(encoded)
    variances: Tensor = torch.linalg.eigvalsh(power).clamp_min(0).flatten()
    return variances


def linear_loss(variances: Tensor) -> float:
    """Return the flow-matching loss of the best linear denoiser of independent Gaussians."""
    times = draw_times(range(TIMES)).double().unsqueeze(1)
    left = variances / ((1 - times).square() * variances + times.square())
    return float(left.mean())


def bits(variances: Tensor, noise: float, channels: int) -> float:
    """Return the bits per latent cell above noise of the standard deviation `noise`."""
    return float(0.5 * (1 + variances / noise**2).log2().mean() * channels)


def noisy_psnr(vae: Autoencoder, pixels: Tensor, noise: float) -> float:
    """Return the mean PSNR in dB of images decoded from latents with added noise."""
    clean = latents(vae, pixels)
    noisy = clean + noise * draw_noise(range(len(clean)), clean.shape[1:])
    with autocast("cpu", "bf16"):
        decoded = torch.cat(
            [decode_latents(vae, part).float() for part in torch.split(noisy, BATCH)]
        )
    errors = (decoded.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    return float((10 * (4 / errors).log10()).mean())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("regions")
    parser.add_argument("--vae", default="embedded", help="or a folder in diffusers' format")
    parser.add_argument("--split", default="val")
    given = parser.parse_args()
    prepare(settings().threads)
    store = open_store(given.store)
    record = load_region_set(store, given.regions)
    vae = make_vae(VaeRecipe(pretrained=given.vae)).eval()
    learnt = latents(vae, images(store, record, "train", SPECTRUM_REGIONS))
    variances, channels = spectrum(learnt), learnt.shape[1]
    each = learnt.double().var((0, 2, 3))
    held_out = images(store, record, given.split, HELD_OUT)
    figures = {
        "vae": given.vae,
        "n": [len(learnt), len(held_out)],
        "channels": channels,
        "linear_loss": round(linear_loss(variances), 3),
        "linear_loss_of_single_numbers": round(linear_loss(each), 3),
        "psnr": round(noisy_psnr(vae, held_out, 0), 2),
        "noises": {
            noise: {
                "bits_per_place": round(bits(variances, noise, channels), 1),
                "psnr": round(noisy_psnr(vae, held_out, noise), 2),
            }
            for noise in NOISES
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
