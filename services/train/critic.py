"""The patch critic that the autoencoder is trained against (Esser et al. 2021, VQGAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128)
SHARE = 0.5
"""Size of the critic's gradient relative to that of the reconstruction."""


class PatchCritic(nn.Sequential):
    """Judges overlapping patches of about 46 px (Isola et al. 2017): (B, 3, H, W) to logits."""

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


def critic_loss(critic: PatchCritic, real: Tensor, made: Tensor) -> Tensor:
    """Return the hinge loss of the critic itself; `made` gets no gradient."""
    wanted = functional.relu(1 - critic(real)).mean()
    unwanted = functional.relu(1 + critic(made.detach())).mean()
    loss: Tensor = 0.5 * (wanted + unwanted)
    return loss


def deceit_loss(
    critic: PatchCritic, made: Tensor, reconstruction: Tensor, last_layer: Tensor
) -> Tensor:
    """Return the loss of the autoencoder from the critic, which gets no gradient.

    It is scaled so that its gradient at the decoder's last layer is `SHARE` of the
    reconstruction's (VQGAN, eq. 7).
    """
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    deceit: Tensor = -torch.func.functional_call(critic, frozen, (made,)).mean()
    strength = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction, deceit)
    ]
    weight = (strength[0] / (strength[1] + 1e-4)).clamp(0, 1e4).detach()
    scaled: Tensor = deceit * SHARE * weight
    return scaled
