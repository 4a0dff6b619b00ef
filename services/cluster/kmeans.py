"""Hierarchical spherical k-means (HeteroTissue-Diffuse, section 3).

The points are unit vectors in half precision, which may lie in a file: FAISS and the assignment
decode them block by block, so two million points of 1,536 numbers take 6 GB of disk.
"""

from __future__ import annotations

import faiss
import numpy as np

from shared.arrays import Float16, Float32, Int64
from shared.errors import InputError

RESTARTS = 3
"""Number of random starts of each k-means; the best result is kept."""

GPU_MEMORY = 512 << 20
"""Bytes of GPU memory for the intermediate results of FAISS; its own choice is 1.5 GB."""

CHUNK = 16_384
"""Points that are decoded at a time."""


def normalize(features: Float32) -> Float32:
    """Scale rows to unit length; zero rows stay zero."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(norms, 1e-12), np.float32)


def half_units(features: Float32) -> Float16:
    """Scale rows to unit length, in half precision."""
    return normalize(features).astype(np.float16)


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


def kmeans(
    points: Float16,
    k: int,
    iterations: int,
    seed: int,
    start: Float32 | None = None,
    device: str = "cpu",
) -> Float32:
    """Run spherical k-means with FAISS.

    A GPU holds the centroids and a block of 32,768 points at a time, whatever their number.

    Args:
        points: float16 (n, d), unit vectors.
        k: number of clusters.
        iterations: number of iterations.
        seed: seed of the random starts.
        start: float32 (k, d), centroids to start from; None: the best of `RESTARTS` random starts.
        device: 'cpu', 'cuda' or 'cuda:N'; without a FAISS for GPUs, the CPU does the work.

    Returns:
        float32 (k, d) centroids of unit length.
    """
    count, width = points.shape
    how = faiss.ClusteringParameters()
    how.niter, how.nredo, how.seed, how.spherical = iterations, RESTARTS, seed, True
    how.min_points_per_centroid, how.max_points_per_centroid = 1, max(1, count)
    if start is not None:
        how.nredo = 1
    model = faiss.Clustering(width, k, how)
    if start is not None:
        faiss.copy_array_to_vector(start.ravel(), model.centroids)
    codec = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16)
    codes = np.ascontiguousarray(points).view(np.uint8)
    model.train_encoded(codes, codec, _index(width, device))
    return normalize(faiss.vector_to_array(model.centroids).reshape(k, width))


def _index(width: int, device: str) -> faiss.Index:
    """Make an index of inner products of vectors of `width` numbers."""
    index = faiss.IndexFlatIP(width)
    kind, _, number = device.partition(":")
    if kind != "cuda" or int(number or 0) >= faiss.get_num_gpus():
        return index
    memory = faiss.StandardGpuResources()
    memory.setTempMemory(GPU_MEMORY)
    return faiss.index_cpu_to_gpu(memory, int(number or 0), index)


def hierarchical_kmeans(
    points: Float16, k: int, first_k: int, iterations: int, seed: int, device: str = "cpu"
) -> Float32:
    """Cluster unit vectors into `first_k` clusters, then split clusters until there are `k`.

    Each step splits the cluster of largest scatter (sum of the cosine distances to its centroid)
    in two; its points are in memory meanwhile. In the end all centroids are moved together, so
    that the result hardly depends on the order of the splits.

    Args:
        points: float16 (n, d), unit vectors, in memory or in a file.
        k: number of clusters.
        first_k: number of clusters before the first split; at most `k` are made.
        iterations: number of iterations of each k-means.
        seed: seed of the random starts.
        device: device of `kmeans`.

    Returns:
        float32 (k, d) centroids of unit length.

    Raises:
        InputError: there are fewer distinct points than clusters.
    """
    distinct = _distinct(points, k)
    if distinct < k:
        raise InputError(
            f"{distinct} different sampled patches cannot make {k} tissue types: lower k, or "
            "sample more patches per slide"
        )
    centroids = kmeans(points, min(first_k, k), iterations, seed, device=device)
    labels, distances = assign_all(points, centroids)
    while len(centroids) < k:
        scatter = np.bincount(labels, distances, len(centroids))
        for worst in np.argsort(-scatter, kind="stable").tolist():
            members = np.flatnonzero(labels == worst)
            own = points[members]
            if _distinct(own, 2) > 1:
                break
        new = len(centroids)
        halves = kmeans(own, 2, iterations, seed + new, device=device)
        side, distances[members] = assign_all(own, halves)
        labels[members[side == 1]] = new
        centroids[worst] = halves[0]
        centroids = np.concatenate([centroids, halves[1:]])
    return kmeans(points, k, iterations, seed, start=centroids, device=device)


def _distinct(points: Float16, enough: int) -> int:
    """Count the different rows; stop when there are `enough`."""
    found: set[bytes] = set()
    for start in range(0, len(points), CHUNK):
        found |= {row.tobytes() for row in np.unique(points[start : start + CHUNK], axis=0)}
        if len(found) >= enough:
            break
    return len(found)


def assign_all(points: Float16, centroids: Float32) -> tuple[Int64, Float32]:
    """Find the nearest centroid of each point, chunk by chunk; see `assign`."""
    labels = np.empty(len(points), np.int64)
    distances = np.empty(len(points), np.float32)
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        labels[part], distances[part] = assign(points[part].astype(np.float32), centroids)
    return labels, distances


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
