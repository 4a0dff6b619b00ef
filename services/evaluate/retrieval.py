"""Retrieval: whether an image tells which crop it was made from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import as_features
from shared.arrays import Int64


def retrieval_top1(
    queries: NDArray[np.floating],
    keys: NDArray[np.floating],
    labels: Int64,
    groups: Int64,
    distractors: int = 31,
    *,
    rng: np.random.Generator,
) -> dict[str, float | None]:
    """Find each query's own key among keys of the same label from other slides.

    A hit is a key strictly nearest by Euclidean distance, in features standardized by the
    mean and the standard deviation of all keys.

    Args:
        queries: features (n, dim).
        keys: features (n, dim); that of query i is row i.
        labels: class of each pair, (n,).
        groups: slide of each key, (n,); wrong keys come from other slides than the right one.
        distractors: wrong keys for each query.
        rng: of the draw of the wrong keys.

    Returns:
        `top1`: share of hits, None without queries; `n` queries; `skipped`: queries left
        out since their label has fewer than `distractors` wrong keys; `chance` of a hit.
    """
    asked, right = as_features(1, queries=queries, keys=keys)
    sizes = [len(asked), len(right), len(labels), len(groups)]
    if len(set(sizes)) > 1:
        raise ValueError(f"queries, keys, labels and groups differ in number: {sizes}")
    mean, scale = right.mean(0), right.std(0)
    scale[scale == 0] = 1  # one value in all keys: tells none from another
    asked, right = (asked - mean) / scale, (right - mean) / scale
    hits = counted = 0
    for index in range(len(asked)):
        wrong = np.flatnonzero((labels == labels[index]) & (groups != groups[index]))
        if len(wrong) < distractors:
            continue
        rows = np.append(index, rng.choice(wrong, distractors, replace=False))
        own, *others = np.linalg.norm(right[rows] - asked[index], axis=1)
        hits += own < min(others)
        counted += 1
    return {
        "top1": float(hits / counted) if counted else None,
        "n": counted,
        "skipped": len(asked) - counted,
        "chance": 1 / (distractors + 1),
    }
