"""Hierarchical spherical k-means (HeteroTissue-Diffuse, section 3)."""

from __future__ import annotations

import faiss
import numpy as np

from shared.arrays import Float32, Int64
from shared.errors import InputError

RESTARTS = 3
"""Number of random starts of each k-means; the best result is kept."""


def normalize(features: Float32) -> Float32:
    """Scale rows to unit length; zero rows stay zero."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), np.float32)


def diverse_sample(features: Float32, count: int, seed: int) -> Int64:
    """Choose `count` diverse rows, by farthest-point sampling on unit vectors.

    Half of the rows are drawn at random, so that outliers do not crowd out common patches. Each
    further row is the one farthest from the rows chosen before.

    Returns:
        int64 row numbers, sorted; all rows if there are no more than `count`.
    """
    total = len(features)
    if total <= count:
        return np.arange(total)
    rng = np.random.default_rng(seed)
    unit = normalize(features)
    chosen = rng.permutation(total)[: count - count // 2].tolist()
    nearest = np.full(total, -1.0, np.float32)
    for start in range(0, len(chosen), 256):
        similar = unit @ unit[chosen[start : start + 256]].T
        np.maximum(nearest, similar.max(1), out=nearest)
    for _ in range(count // 2):
        farthest = int(nearest.argmin())
        chosen.append(farthest)
        np.maximum(nearest, unit @ unit[farthest], out=nearest)
        nearest[farthest] = np.inf
    return np.sort(np.array(chosen, np.int64))


def kmeans(points: Float32, k: int, iterations: int, seed: int) -> Float32:
    """Run spherical k-means with FAISS, on a GPU if FAISS finds one.

    Returns:
        float32 (k, d) centroids of unit length.
    """
    gpu = hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus() > 0
    model = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        nredo=RESTARTS,
        spherical=True,
        seed=seed,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(points)),
    )
    model.train(points)
    return normalize(np.asarray(model.centroids, np.float32).reshape(k, -1))


def hierarchical_kmeans(
    features: Float32, k: int, first_k: int, iterations: int, seed: int
) -> Float32:
    """Cluster features into `first_k` clusters, then split clusters until there are `k`.

    Each step splits the cluster of largest scatter (sum of the cosine distances to its centroid)
    in two.

    Args:
        features: float32 (n, d), of any length.
        k: number of clusters.
        first_k: number of clusters before the first split; at most `k` are made.
        iterations: number of iterations of each k-means.
        seed: seed of the random starts.

    Returns:
        float32 (k, d) centroids of unit length.

    Raises:
        InputError: there are fewer distinct features than clusters.
    """
    points = normalize(features)
    distinct = len(np.unique(points, axis=0))
    if distinct < k:
        raise InputError(
            f"{distinct} different sampled patches cannot make {k} tissue types: lower k, or "
            "sample more patches per slide"
        )
    centroids = kmeans(points, min(first_k, k), iterations, seed)
    labels, distances = assign(points, centroids)
    while len(centroids) < k:
        scatter = np.bincount(labels, distances, len(centroids))
        worst = next(
            int(index)
            for index in np.argsort(-scatter, kind="stable")
            if len(np.unique(points[labels == index], axis=0)) > 1
        )
        members = np.flatnonzero(labels == worst)
        new = len(centroids)
        halves = kmeans(points[members], 2, iterations, seed + new)
        side, distances[members] = assign(points[members], halves)
        labels[members[side == 1]] = new
        centroids[worst] = halves[0]
        centroids = np.concatenate([centroids, halves[1:]])
    return centroids


def assign(features: Float32, centroids: Float32) -> tuple[Int64, Float32]:
    """Find the nearest centroid of each feature.

    Args:
        features: float32 (n, d), of any length.
        centroids: float32 (k, d) of unit length.

    Returns:
        int64 (n,) numbers of the centroids, and float32 (n,) cosine distances (0 to 2).
    """
    scores = normalize(features) @ centroids.T
    labels = scores.argmax(1)
    return labels, np.asarray(1 - scores[np.arange(len(scores)), labels], np.float32)
