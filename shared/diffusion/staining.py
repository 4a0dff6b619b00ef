"""Staining guidance: for most of the way, regions are drawn to their crops' colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNTIL = 0.25
"""Time down to which it draws: guidance carries colours away so long; later it costs texture."""


@dataclass(frozen=True)
class Staining:
    """The mean latents that regions of images are drawn to.

    Attributes:
        shares: (B, N, h, w), of each place that a crop speaks for: its class's there, divided
            among the crops of that class.
        means: (B, N, C), mean latent of each crop.
    """

    shares: Tensor
    means: Tensor

    def draw(self, sample: Tensor, time: float, velocity: Tensor, strength: float) -> Tensor:
        """Shift the regions of the image that a velocity points to, towards their crops.

        Args:
            sample: x_t, (B, C, h, w).
            time: t.
            velocity: (B, C, h, w); x0 = x_t - t v.
            strength: 0 leaves the means, 1 makes them the crops'.

        Returns:
            The velocity that points to the shifted image; the same at times up to `UNTIL`.
        """
        if time <= UNTIL or not strength:
            return velocity
        with torch.autocast(sample.device.type, enabled=False):
            image = sample.float() - time * velocity.float()
            places = self.shares.sum((2, 3))
            sums = torch.einsum("bnhw,bchw->bnc", self.shares, image)
            lack = self.means - sums / places.clamp_min(1e-6).unsqueeze(2)
            shift = torch.einsum("bnhw,bnc->bchw", self.shares, lack)
        return velocity - strength / time * shift
