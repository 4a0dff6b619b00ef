"""Fidelity: Fréchet distances of synthetic and real features, with floors beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import distance_of

Features = NDArray[np.float32]


def fidelity(synthetic: Features, test: Features, train: Features, seed: int) -> dict[str, Any]:
    """Compare features (n, dim) of synthetic, real test and real training images.

    Fréchet distances shrink with n, so the figures to compare are taken at the same n
    against one half of the test images: the synthetic images, the other half (floor)
    and as many training images.

    Returns:
        `frechet` of all synthetic against all test images with their `n`, `dim`, and
        `matched`: {n, synthetic, train, floor}, or None where n would be below 2.
        `reliable` says whether every n is at least twice the dimension.
    """
    dim = synthetic.shape[1]
    few = min(len(synthetic), len(test))
    n = min(len(synthetic), len(test) // 2, len(train))
    matched = None
    if n >= 2:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(test))
        half, other = test[order[:n]], test[order[n : 2 * n]]
        matched = {
            "n": n,
            "synthetic": distance_of(synthetic[rng.permutation(len(synthetic))[:n]], half),
            "train": distance_of(train[rng.permutation(len(train))[:n]], half),
            "floor": distance_of(other, half),
        }
    return {
        "frechet": distance_of(synthetic, test) if few >= 2 else None,
        "n": {"synthetic": len(synthetic), "test": len(test)},
        "dim": dim,
        "matched": matched,
        "reliable": min(few, n) >= 2 * dim,
    }


def nearest(queries: Features, bank: Features) -> list[int]:
    """For every query (n, dim), the row of the bank (m, dim) of greatest cosine similarity."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (queries, bank)]
    found: list[int] = (unit[0] @ unit[1].T).argmax(1).tolist()
    return found
