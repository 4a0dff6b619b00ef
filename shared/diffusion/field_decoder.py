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


def fixed_tensors(statistics: Sequence[Mapping[str, Tensor]], scales: Tensor) -> dict[str, Tensor]:
    """Name what a decoder keeps fixed over a field.

    Args:
        statistics: for each appearance, those of `norm_statistics`.
        scales: logarithms of the factors of the staining (appearances, n, 3), see `probe`.
    """
    norms = {
        f"norms.{number}.{name}": value.cpu()
        for number, own in enumerate(statistics)
        for name, value in own.items()
    }
    return norms | {"scales": scales}


def probe(sampler: FieldSampler) -> dict[str, Tensor]:
    """Measure on some windows what the decoder keeps fixed over the whole field.

    Returns:
        The `fixed_tensors`: the statistics of the norms for each appearance, and what
        `density_scales` returns for each appearance and each class with a crop, in the order of
        their labels.
    """
    places = _places(sampler)
    labels = np.stack([sampler.window_labels(y, x) for y, x in places])
    kinds, wanted = _wanted(sampler)
    vae, device = sampler.pipeline.vae, sampler.device
    statistics, actual = [], []
    with torch.inference_mode(), sampler.computing():
        for appearance in sampler.appearances:
            raw = to_raw(vae, sampler.windows(places, appearance).to(device))
            statistics.append(norm_statistics(vae, raw))
            fixed = with_fixed_norms(vae, statistics[-1])
            images = [
                to_pixels(fixed.decode(row.to(vae.dtype), return_dict=False)[0]).cpu()
                for row in torch.split(raw, 1)
            ]
            actual.append(class_densities(torch.cat(images), labels, kinds))
    shown = torch.from_numpy(np.isin(kinds.numpy(), labels)).unsqueeze(1)
    scales = density_scales(torch.stack(actual), wanted, sampler.sampling.staining) * shown
    return fixed_tensors(statistics, scales)


class FieldDecoder:
    """Decodes rows of a field.

    Args:
        sampler: the sampler of the field.
        fixed: the result of `probe`, or other `fixed_tensors`.

    Attributes:
        reach: rows above and below that a row depends on, latent pixels.
    """

    def __init__(self, sampler: FieldSampler, fixed: Mapping[str, Tensor]) -> None:
        self.sampler = sampler
        self.scales = fixed["scales"].to(sampler.device)
        with torch.inference_mode(), sampler.computing():
            self._decoders = [
                PieceDecoder(with_fixed_norms(sampler.pipeline.vae, _statistics(fixed, number)))
                for number in range(len(sampler.appearances))
            ]
        self.reach = self._decoders[0].reach

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
            edge = [min(1, side) * factor for side in halo]  # a class fades into its neighbours
            own = None
            if labels is not None:
                own = labels[None, :, left * factor - edge[2] : right * factor + edge[3]]
            parts = [
                (share, self._look(number, raw, halo, own, edge))
                for number, share in self._shares(top, bottom, left, right)
            ]
        pixels = parts[0][1]
        if len(parts) > 1:
            mixed = torch.stack([share[..., None] * part for share, part in parts]).sum(0)
            pixels = mixed.round().to(torch.uint8)
        decoded: UInt8 = pixels.cpu().numpy()
        return decoded

    def _shares(self, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each appearance that a piece shows, and its share of each pixel."""
        sampler, factor = self.sampler, self.sampler.factor
        ys, xs = (
            (torch.arange(first * factor, last * factor) + 0.5) / factor
            for first, last in ((top, bottom), (left, right))
        )
        for number, share in enumerate(sampler.shares(ys, xs)):
            if share.any():
                yield number, share.to(sampler.device)

    def _look(
        self,
        number: int,
        raw: Tensor,
        halo: Sequence[int],
        labels: UInt8 | None,
        edge: Sequence[int],
    ) -> Tensor:
        """Decode a piece in an appearance, uint8 (rows, columns, 3).

        `labels` (1, rows, columns) are those of the piece, and of `edge` pixels above, below, left
        and right of it; None: no class has a crop.
        """
        pixels = to_pixels(self._decoders[number].decode(raw, halo))
        if labels is not None:
            height, width = pixels.shape[1:3]
            kinds, _ = _wanted(self.sampler)
            padded = functional.pad(pixels, (0, 0, edge[2], edge[3], edge[0], edge[1]))
            scaled = scale_densities(padded, labels, kinds, self.scales[number])
            pixels = scaled[:, edge[0] :, edge[2] :][:, :height, :width]
        return pixels[0]


def make_field(sampler: FieldSampler) -> UInt8:
    """Make a whole field in memory: uint8 RGB (height, width, 3)."""
    strip = sampler.noise(0, sampler.height)
    for step in range(sampler.sampling.steps):
        strip = sampler.advance(step, strip, 0, sampler.height)
    return FieldDecoder(sampler, probe(sampler)).decode(strip, 0, sampler.height)


def _statistics(fixed: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return the statistics of an appearance from `fixed_tensors`."""
    start = f"norms.{number}."
    return {name.removeprefix(start): own for name, own in fixed.items() if name.startswith(start)}


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
