"""Reading the features of a slide's patches: all of them, or a diverse sample."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from services.cluster.kmeans import diverse_sample, half_units
from shared.arrays import Float32, Int64
from shared.contracts.cluster import ClusterRequest, cluster_key
from shared.contracts.embed import features_key
from shared.features import open_features
from shared.jobs import Shard
from shared.storage import Store

PATCHES_AT_ONCE = 16384
"""Greatest number of patches whose features are in memory at once."""

POOL_FACTOR = 10
"""Size of the random pool that a slide's diverse sample is chosen from, in sample sizes."""


def per_slide(request: ClusterRequest, slides: int) -> int:
    """Return how many patches each of the training slides gives at most."""
    return max(1, min(request.sample_per_slide, request.max_samples // max(1, slides)))


def stream_patches(
    store: Store, request: ClusterRequest, slide: str, digest: str | None
) -> Iterator[tuple[Int64, Float32]]:
    """Yield coordinates (n, 2) and features (n, d) of a slide's patches, chunk by chunk."""
    key = features_key(request.encoder, request.cohort, slide)
    with open_features(store, key, digest) as file:
        for start in range(0, len(file), PATCHES_AT_ONCE):
            end = start + PATCHES_AT_ONCE
            yield file.coords[start:end], file.features(start, end)


def sample_patches(request: ClusterRequest, shard: Shard, store: Store) -> dict[str, Any]:
    """Write a slide's diverse sample, chosen from a random pool to bound memory and time."""
    slide, count = str(shard.args["slide"]), int(str(shard.args["count"]))
    key = features_key(request.encoder, request.cohort, slide)
    with open_features(store, key, (shard.reads or {}).get(slide)) as file:
        wanted = np.zeros(len(file), bool)
        drawn = np.random.default_rng([request.seed, 2]).permutation(len(file))
        wanted[drawn[: POOL_FACTOR * count]] = True
        pool = np.zeros((0, file.dim), np.float32)
        for start in range(0, len(file), PATCHES_AT_ONCE):
            end = start + PATCHES_AT_ONCE
            pool = np.concatenate([pool, file.features(start, end)[wanted[start:end]]])
    chosen = diverse_sample(pool, count, request.seed)
    body = io.BytesIO()
    np.save(body, half_units(pool[chosen]))
    store.put(cluster_key(request.run, f"samples/{slide}.npy"), body.getvalue())
    return {"sampled": len(chosen)}
