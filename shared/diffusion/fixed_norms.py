"""A decoder whose norms have fixed statistics, so that it decodes a large image piece by piece.

A group norm takes its statistics over the whole image, so every pixel depends on every other, and
a piece that is decoded alone has another staining. With the statistics of some typical windows a
pixel depends only on the latents near it.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
    """Return a copy of an autoencoder whose decoder's group norms use the given statistics.

    A norm right after a convolution becomes part of its weights: that saves a pass over all pixels.
    """
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
    for block in fixed.decoder.modules():
        if isinstance(block, ResnetBlock2D):
            block.conv1 = fuse_conv_bn_eval(block.conv1, block.norm2)
            block.norm2 = nn.Identity()
    return fixed


class PieceDecoder:
    """Decodes a piece of an image to the pixels that it has when the whole image is decoded.

    The first layers look far around, the last ones a few pixels. So each stage of the decoder drops
    the surroundings that the rest of it does not need.

    Args:
        vae: an autoencoder of `with_fixed_norms`.

    Attributes:
        reach: how many latent pixels away, at most `MAX_REACH`, the decoder still sees.
    """

    def __init__(self, vae: Autoencoder) -> None:
        self.vae, self._factor = vae, vae_factor(vae)
        self._around = [0, 0, 0, 0]  # pixels of the image above, below, left and right of the piece
        self._reaches: dict[nn.Module, tuple[int, int]] = {}
        order: list[nn.Module] = []
        watching = [
            stage.register_forward_hook(lambda own, *_: order.append(own)) for stage in _stages(vae)
        ]
        _, seen = self._see(None, MAX_REACH)
        for handle in watching:
            handle.remove()
        self.reach = math.ceil(seen / self._factor)
        for stage in order:
            self._reaches[stage] = self._see(stage, math.ceil(seen / self._factor))
            seen = self._reaches[stage][1]
        own = weakref.proxy(self)  # hooks that held it would keep the autoencoder's copy alive
        for stage in order:
            stage.register_forward_hook(lambda *given: own._drop(*given))

    def decode(self, latents: Tensor, halo: Sequence[int]) -> Tensor:
        """Decode raw latents (B, C, h, w) to images in [-1, 1], without the halo.

        Args:
            latents: of the piece and its halo.
            halo: latent pixels above, below, left and right of the piece: `reach`, or all that
                there are up to the edge of the image.
        """
        self._around = [self._factor * side for side in halo]
        image = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return _without(image, self._around)

    def _drop(self, stage: nn.Module, _: object, output: Tensor) -> Tensor:
        """Drop what lies further around the piece than the rest of the decoder sees."""
        unit, reach = self._reaches[stage]
        surplus = [max(0, side - reach) // unit for side in self._around]
        self._around = [side - unit * own for side, own in zip(self._around, surplus, strict=True)]
        return _without(output, surplus)

    def _see(self, stage: nn.Module | None, side: int) -> tuple[int, int]:
        """Measure how far the rest of the decoder sees from a pixel of a stage's output.

        Args:
            stage: None: from a latent pixel.
            side: latent pixels that are decoded above and below it.

        Returns:
            Pixels of the image per pixel of the stage, and pixels of the image that are seen.
        """
        height = 0

        def mark(values: Tensor) -> Tensor:
            nonlocal height
            height = values.shape[2]
            marked = torch.zeros_like(values)
            marked[..., height // 2, :] = math.nan  # which reaches all that see it
            return marked

        channels, length = int(self.vae.config.latent_channels), 2 * side + 1
        latents = torch.zeros(1, channels, length, 1, dtype=self.vae.dtype).to(self.vae.device)
        if stage is None:
            image = self.vae.decode(mark(latents), return_dict=False)[0]
        else:
            handle = stage.register_forward_hook(lambda _, given, output: mark(output))
            image = self.vae.decode(latents, return_dict=False)[0]
            handle.remove()
        rows, unit = image[0].isnan().any(0).any(1).nonzero(), image.shape[2] // height
        above = height // 2 * unit - int(rows.min())
        below = int(rows.max()) + 1 - (height // 2 + 1) * unit
        return unit, max(above, below)


def _without(values: Tensor, around: Sequence[int]) -> Tensor:
    """Return the middle of (B, C, h, w), without so many above, below, left and right."""
    above, below, left, right = around
    height, width = values.shape[2:]
    return values[:, :, above : height - below, left : width - right]


def _stages(vae: Autoencoder) -> Iterator[nn.Module]:
    """Yield the parts of a decoder that run one after another; their order depends on its kind."""
    if hasattr(vae.decoder, "mid_block"):
        yield vae.decoder.mid_block
    for block in vae.decoder.up_blocks:
        for part in block.children():
            if isinstance(part, nn.ModuleList):
                yield from part
            else:
                yield part


def _norms(vae: Autoencoder) -> list[tuple[str, nn.GroupNorm]]:
    modules = vae.decoder.named_modules()
    return [(name, norm) for name, norm in modules if isinstance(norm, nn.GroupNorm)]
