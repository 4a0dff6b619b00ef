"""The embedded encoder: a small network that every cohort trains on its own patches."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchNet(nn.Module):
    """The embedded encoder: a small residual network for patches of 64 px.

    Its features are the means of the last feature maps, then their standard deviations.
    """

    WIDTHS = (24, 48, 96, 192)

    def __init__(self) -> None:
        super().__init__()
        widths = self.WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in itertools.pairwise(widths))

    @property
    def dim(self) -> int:
        """Width of the features."""
        return 2 * self.WIDTHS[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalized images (N, 3, 64, 64) to features (N, dim)."""
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        maps = hidden.flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], 1)


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(8, after),
        )
        self.skip = nn.Conv2d(before, after, 1, stride=2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.relu(self.main(hidden) + self.skip(hidden))


def random_net(seed: int = 0) -> PatchNet:
    """Make an untrained `PatchNet`; the same seed gives the same weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    net = PatchNet()
    torch.random.set_rng_state(state)
    return net
