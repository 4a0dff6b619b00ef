"""Decoding the latents of a field to pixels, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.arrays import UInt8
from shared.diffusion.autoencoder import to_pixels, to_raw
from shared.diffusion.fields import FieldSampler, Strip
from shared.diffusion.fixed_norms import PieceDecoder, norm_statistics, with_fixed_norms
from shared.diffusion.staining import (
    class_densities,
    crop_densities,
    density_scales,
    scale_densities,
)
from shared.seeds import image_seed

PIECE = 512
"""Side of the pieces that are decoded at a time, pixels."""

PROBES, PLACES = 8, 64
"""Number of windows that `probe` makes, and of the places that it chooses them from."""

NORMS = "norms."


def probe(sampler: FieldSampler) -> dict[str, Tensor]:
    """Measure on some windows what the decoder keeps fixed over the whole field.

    Returns:
        `scales`: what `density_scales` returns for each appearance and each class with a crop, in
        the order of their labels (appearances, n, 3); `norms.<name>`: the statistics of
        `norm_statistics`, of all appearances.
    """
    places = _places(sampler)
    labels = np.stack([sampler.window_labels(y, x) for y, x in places])
    vae, device = sampler.pipeline.vae, sampler.device
    with torch.inference_mode(), sampler.computing():
        raw = [
            to_raw(vae, sampler.windows(places, appearance).to(device))
            for appearance in sampler.appearances
        ]
        statistics = norm_statistics(vae, torch.cat(raw))
        fixed = with_fixed_norms(vae, statistics)
        images = [
            torch.cat(
                [
                    to_pixels(fixed.decode(row.to(vae.dtype), return_dict=False)[0])
                    for row in torch.split(own, 1)
                ]
            ).cpu()
            for own in raw
        ]
    found = {f"{NORMS}{name}": value.cpu() for name, value in statistics.items()}
    kinds, wanted = _wanted(sampler)
    actual = torch.stack([class_densities(own, labels, kinds) for own in images])
    shown = torch.from_numpy(np.isin(kinds.numpy(), labels)).unsqueeze(1)
    return found | {"scales": density_scales(actual, wanted, sampler.sampling.staining) * shown}


class FieldDecoder:
    """Decodes rows of a field.

    Args:
        sampler: the sampler of the field.
        fixed: the result of `probe`.

    Attributes:
        reach: rows above and below that a row depends on, latent pixels.
    """

    def __init__(self, sampler: FieldSampler, fixed: Mapping[str, Tensor]) -> None:
        self.sampler = sampler
        statistics = {
            name.removeprefix(NORMS): value.to(sampler.device)
            for name, value in fixed.items()
            if name.startswith(NORMS)
        }
        self.scales = fixed["scales"]
        with torch.inference_mode(), sampler.computing():
            self._decoder = PieceDecoder(with_fixed_norms(sampler.pipeline.vae, statistics))
        self.reach = self._decoder.reach

    def halo(self, top: int, bottom: int) -> tuple[int, int]:
        """Return the rows of latents that `decode` reads for some rows."""
        return max(0, top - self.reach), min(self.sampler.height, bottom + self.reach)

    def pieces(self, given: Strip, top: int, bottom: int) -> Iterator[UInt8]:
        """Decode rows of latents to pieces of the field, from left to right and downwards.

        Args:
            given: finished latents, at least the rows of `halo`.
            top, bottom: rows to decode, multiples of `PIECE` pixels or the edges of the field.

        Yields:
            uint8 RGB (PIECE, PIECE, 3); the last of a row and of all rows end with the label map.
        """
        sampler, factor = self.sampler, self.sampler.factor
        side = PIECE // factor
        for y in range(top, bottom, side):
            end = min(y + side, bottom)
            near = max(0, y - 1), min(sampler.height, end + 1)
            labels = sampler.label_rows(*near) if self.scales.numel() else None
            for x in range(0, sampler.width, side):
                sampler.watch(y - top, bottom - top)
                piece = self._piece(given, labels, y, end, x, min(x + side, sampler.width))
                yield piece[
                    : sampler.labels.height - y * factor, : sampler.labels.width - x * factor
                ]

    def decode(self, given: Strip, top: int, bottom: int) -> UInt8:
        """Decode whole rows, uint8 RGB (rows, width of the label map, 3); see `pieces`."""
        pieces = list(self.pieces(given, top, bottom))
        across = -(-self.sampler.labels.width // PIECE)
        rows = (pieces[start : start + across] for start in range(0, len(pieces), across))
        return np.concatenate([np.concatenate(row, 1) for row in rows])

    def _piece(
        self, given: Strip, labels: UInt8 | None, top: int, bottom: int, left: int, right: int
    ) -> UInt8:
        """Decode a piece; `labels` are those of its rows and of a latent pixel above and below."""
        sampler, factor = self.sampler, self.sampler.factor
        above, below = self.halo(top, bottom)
        before, after = max(0, left - self.reach), min(sampler.width, right + self.reach)
        latents = given.rows(above, below).sample[None, :, :, before:after]
        halo = (top - above, below - bottom, left - before, after - right)
        with torch.inference_mode(), sampler.computing():
            raw = to_raw(sampler.pipeline.vae, latents.to(sampler.device))
            pixels = to_pixels(self._decoder.decode(raw, halo))
        if labels is not None:
            # classes fade into each other, so the staining depends on labels a little around
            edge = [min(1, side) * factor for side in halo]
            own = labels[None, :, left * factor - edge[2] : right * factor + edge[3]]
            kinds, _ = _wanted(sampler)
            padded = functional.pad(pixels, (0, 0, edge[2], edge[3], edge[0], edge[1]))
            ys = torch.arange(top * factor - edge[0], bottom * factor + edge[1]) + 0.5
            xs = torch.arange(left * factor - edge[2], right * factor + edge[3]) + 0.5
            shares = sampler.shares(ys / factor, xs / factor) if len(self.scales) > 1 else None
            scaled = scale_densities(padded, own, kinds, self.scales.to(pixels.device), shares)
            pixels = scaled[:, edge[0] :, edge[2] :][:, : pixels.shape[1], : pixels.shape[2]]
        decoded: UInt8 = pixels[0].cpu().numpy()
        return decoded


def make_field(sampler: FieldSampler) -> UInt8:
    """Make a whole field in memory: uint8 RGB (height, width, 3)."""
    strip = sampler.noise(0, sampler.height)
    for step in range(sampler.sampling.steps):
        strip = sampler.advance(step, strip, 0, sampler.height)
    return FieldDecoder(sampler, probe(sampler)).decode(strip, 0, sampler.height)


def _wanted(sampler: FieldSampler) -> tuple[Tensor, Tensor]:
    """Return the classes with a crop (n,), and the densities of crops (appearances, n, 3)."""
    kinds, wanted = crop_densities([list(own.crops.values()) for own in sampler.appearances])
    return kinds[0], wanted


def _places(sampler: FieldSampler) -> list[tuple[int, int]]:
    """Choose places of windows at random, and for each class the one that shows most of it."""
    rng = np.random.default_rng(image_seed(sampler.seed, 2))
    limits = (sampler.height - sampler.window + 1, sampler.width - sampler.window + 1)
    places = [(int(y), int(x)) for y, x in rng.integers(limits, size=(PLACES, 2))]
    shares = np.stack(
        [np.bincount(sampler.window_labels(y, x).ravel(), minlength=256) for y, x in places]
    )
    best: Sequence[int] = shares.argmax(0)[list(sampler.appearances[0].crops)].tolist()
    chosen = dict.fromkeys([*range(PROBES), *best])
    return [places[number] for number in chosen]
