"""The perceptual loss: the distance between two images in the features of a trained network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from shared.encoders import load_maps
from shared.storage import Store


class PerceptualLoss:
    """The mean squared distance of unit feature vectors, summed over the stages of a network.

    This is LPIPS (Zhang et al. 2018, eq. 1) without its learnt weights.

    Args:
        encoder: name of a convolutional encoder, see `shared.encoders.load_maps`.
        store: object store that may hold the encoder's weights.
        device: device of the encoder.
    """

    def __init__(self, encoder: str, store: Store, device: str) -> None:
        self.maps = load_maps(encoder, store, device)

    def __call__(self, decoded: Tensor, real: Tensor) -> Tensor:
        """Compare images (B, 3, H, W) in [-1, 1]; only `decoded` gets a gradient."""
        real_maps = [functional.normalize(maps.detach(), dim=1) for maps in self.maps(real)]
        decoded_maps = [functional.normalize(maps, dim=1) for maps in self.maps(decoded)]
        distances = [
            (one - other).square().sum(1).mean()
            for one, other in zip(decoded_maps, real_maps, strict=True)
        ]
        total: Tensor = sum(distances[1:], distances[0])
        return total
