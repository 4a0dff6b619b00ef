"""The light classifier: a small network that predicts tissue types from pixels.

It learns the types from the clustering. The paper labels new slides with such a network instead
of the foundation model (HeteroTissue-Diffuse, section 3). Here it has the architecture of the
embedded encoder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shared.arrays import Int64, UInt8
from shared.encoders import IMAGENET, PatchNet, normalized, random_net

BATCH = 64


class TypeClassifier(nn.Module):
    """Predicts which of `k` tissue types a patch of 64 px shows."""

    def __init__(self, net: PatchNet, k: int) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Linear(net.dim, k)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, k) of images, uint8 RGB (N, 64, 64, 3)."""
        logits: torch.Tensor = self.head(self.net(normalized(images, IMAGENET)))
        return logits


def train_classifier(
    images: UInt8,
    labels: Int64,
    k: int,
    steps: int,
    seed: int,
    device: str,
    report: Callable[[int, int, str], None],
) -> TypeClassifier:
    """Train a classifier on patches that are turned and mirrored at random.

    Args:
        images: uint8 RGB (N, 64, 64, 3).
        labels: int64 (N,), tissue type of each patch, 0 to k - 1.
        k: number of tissue types.
        steps: number of optimizer steps, each on `BATCH` patches.
        seed: seed of the weights and of all draws.
        device: 'cpu' or 'cuda'.
        report: called with the number of finished steps, the number of all steps, and a note.

    Returns:
        The trained classifier, in evaluation mode.
    """
    torch.manual_seed(seed)
    model = TypeClassifier(random_net(seed), k).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(2, steps))
    rng = np.random.default_rng([seed, 11])
    for step in range(steps):
        chosen = rng.integers(len(images), size=BATCH)
        turned = np.rot90(images[chosen], int(rng.integers(4)), axes=(1, 2))
        if rng.random() < 0.5:
            turned = turned[:, ::-1]
        batch = torch.from_numpy(np.ascontiguousarray(turned)).to(device)
        loss = functional.cross_entropy(model(batch), torch.from_numpy(labels[chosen]).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        report(step + 1, steps, f"loss {loss.item():.3f}")
    return model.eval()


@torch.inference_mode()
def accuracy(model: TypeClassifier, images: UInt8, labels: Int64, device: str) -> float:
    """Return the share of patches whose tissue type is predicted correctly, 0 to 1."""
    predicted = [
        model(torch.from_numpy(images[start : start + BATCH]).to(device)).argmax(1).cpu().numpy()
        for start in range(0, len(images), BATCH)
    ]
    return float((np.concatenate(predicted) == labels).mean())
