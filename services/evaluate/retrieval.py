"""Retrieval: how often an image is nearer to its own crop than to other crops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.evaluate.frechet import as_features
from shared.arrays import Int64
from shared.contracts.evaluate import Retrieval


def retrieval_top1(
    queries: NDArray[np.floating],
    keys: NDArray[np.floating],
    labels: Int64,
    groups: Int64,
    distractors: int = 31,
    *,
    rng: np.random.Generator,
) -> Retrieval:
    """Search each query's own key among keys of the same label from other slides.

    A query is a hit if its own key is strictly the nearest by Euclidean distance. Features are
    standardized by the mean and the standard deviation of all keys.

    Args:
        queries: features (n, dim).
        keys: features (n, dim); row i is the own key of query i.
        labels: class of each query and its key, (n,).
        groups: number of each key's slide, (n,); wrong keys come from other slides.
        distractors: number of wrong keys for each query.
        rng: generator that draws the wrong keys.

    Returns:
        The share of hits. Queries with fewer than `distractors` possible wrong keys are skipped.

    Raises:
        ValueError: queries, keys, labels and groups differ in number, or features in dim.
    """
    query_features, key_features = as_features(1, queries=queries, keys=keys)
    sizes = [len(query_features), len(key_features), len(labels), len(groups)]
    if len(set(sizes)) > 1:
        raise ValueError(f"queries, keys, labels and groups differ in number: {sizes}")
    mean, scale = key_features.mean(0), key_features.std(0)
    scale[scale == 0] = 1  # a dimension that is constant over the keys
    query_features, key_features = (query_features - mean) / scale, (key_features - mean) / scale
    hits = counted = 0
    for index in range(len(query_features)):
        wrong = np.flatnonzero((labels == labels[index]) & (groups != groups[index]))
        if len(wrong) < distractors:
            continue
        rows = np.append(index, rng.choice(wrong, distractors, replace=False))
        own, *others = np.linalg.norm(key_features[rows] - query_features[index], axis=1)
        hits += own < min(others)
        counted += 1
    return Retrieval(
        top1=float(hits / counted) if counted else None,
        n=counted,
        skipped=len(query_features) - counted,
        chance=1 / (distractors + 1),
    )
