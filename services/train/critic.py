"""The patch critic, against which the decoder is trained (Esser et al. 2021, VQGAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128)
GRADIENT_RATIO = 0.5
"""Norm of the adversarial loss's gradient, relative to that of the reconstruction loss."""


class PatchCritic(nn.Sequential):
    """Maps images (B, 3, H, W) to a logit for each patch of 70 × 70 px (Isola et al. 2017).

    Patches overlap. A logit is high where the critic takes the patch for real.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        before = 3
        for after in CHANNELS:
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, after)] if before > 3 else []
            layers += [nn.LeakyReLU(0.2)]
            before = after
        super().__init__(
            *layers,
            nn.Conv2d(before, before, 4, padding=1),
            nn.GroupNorm(8, before),
            nn.LeakyReLU(0.2),
            nn.Conv2d(before, 1, 4, padding=1),
        )


def critic_loss(critic: PatchCritic, real: Tensor, decoded: Tensor) -> Tensor:
    """Return the hinge loss that trains the critic; `decoded` gets no gradient."""
    on_real = functional.relu(1 - critic(real)).mean()
    on_decoded = functional.relu(1 + critic(decoded.detach())).mean()
    loss: Tensor = 0.5 * (on_real + on_decoded)
    return loss


def deceit_loss(
    critic: PatchCritic, decoded: Tensor, reconstruction: Tensor, last_layer: Tensor
) -> Tensor:
    """Return the adversarial loss, which trains the decoder to deceive the critic.

    The critic gets no gradient. The loss is scaled so that the norm of its gradient at the
    decoder's last layer is `GRADIENT_RATIO` times that of the reconstruction loss (VQGAN, eq. 7).

    Args:
        critic: the critic.
        decoded: images from the decoder, (B, 3, H, W).
        reconstruction: the reconstruction loss.
        last_layer: weights of the decoder's last layer.
    """
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    deceit: Tensor = -torch.func.functional_call(critic, frozen, (decoded,)).mean()
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction, deceit)
    ]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    scaled: Tensor = deceit * GRADIENT_RATIO * weight
    return scaled
