"""The perceptual loss: distances between the feature maps of a trained network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from shared.encoders import load_maps
from shared.storage import ObjectStore


class PerceptualLoss:
    """Mean squared distance of unit feature vectors, summed over a network's stages.

    This is LPIPS (Zhang et al. 2018, eq. 1) without its learnt weights.

    Args:
        encoder: name of a convolutional encoder, see `shared.encoders.load_maps`.
        store: may hold its weights.
        device: device of the network.
    """

    def __init__(self, encoder: str, store: ObjectStore, device: str) -> None:
        self.maps = load_maps(encoder, store, device)

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        """Compare images (B, 3, H, W) in [-1, 1]; only `made` gets a gradient."""
        wanted = [functional.normalize(maps.detach(), dim=1) for maps in self.maps(real)]
        given = [functional.normalize(maps, dim=1) for maps in self.maps(made)]
        distances = [
            (one - other).square().sum(1).mean() for one, other in zip(given, wanted, strict=True)
        ]
        total: Tensor = sum(distances[1:], distances[0])
        return total
