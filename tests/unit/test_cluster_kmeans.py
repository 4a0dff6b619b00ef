"""The k-means of patches: what it finds, again each time, and in a sample as in all of them."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from services.cluster.kmeans import (
    GPU_MEMORY,
    assign,
    diverse_sample,
    half_units,
    hierarchical_kmeans,
    kmeans,
    normalize,
)
from shared.errors import InputError


def blobs(
    spreads: list[float], count: int, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points around orthogonal directions, each with its own spread, and which is whose."""
    rng = np.random.default_rng(seed)
    centres = np.eye(len(spreads), 16) * 10
    owners = np.repeat(np.arange(len(spreads)), count)
    noise = rng.normal(size=(len(owners), 16)) * np.array(spreads)[owners, None]
    return (centres[owners] + noise).astype(np.float32), owners


def test_blobs_are_found() -> None:
    points, owners = blobs([0.3] * 5, 40)
    labels, distances = assign(points, hierarchical_kmeans(half_units(points), 5, 5, 20, 0))
    assert len({(a, b) for a, b in zip(owners, labels, strict=True)}) == 5
    assert distances.max() < 0.1


def test_what_varies_most_is_split() -> None:
    points, owners = blobs([0.2, 3.0, 0.2], 60)
    before, _ = assign(points, hierarchical_kmeans(half_units(points), 3, 3, 20, 0))
    after, _ = assign(points, hierarchical_kmeans(half_units(points), 4, 3, 20, 0))
    assert len(set(before[owners == 1])) < len(set(after[owners == 1]))
    for tight in (0, 2):
        assert len(set(after[owners == tight])) == 1


def test_clustering_is_the_same_each_time() -> None:
    points, _ = blobs([1.0] * 6, 50)
    first, second = (hierarchical_kmeans(half_units(points), 12, 6, 20, 3) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_a_gpu_gets_bounded_memory_and_the_number_that_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a FAISS for GPUs, the CPU does the work; that FAISS itself has no test here."""
    points = half_units(blobs([0.3] * 3, 40)[0])
    alone, asked = (kmeans(points, 3, 5, 0, device=device) for device in ("cpu", "cuda:1"))
    assert np.array_equal(alone, asked)
    taken: list[tuple[int, int]] = []

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802 - FAISS's name
            self.size = size

    def on_gpu(resources: Resources, number: int, index: faiss.Index) -> faiss.Index:
        taken.append((resources.size, number))
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", on_gpu, raising=False)
    for device in ("cpu", "cuda:2", "cuda:1", "cuda"):
        assert np.array_equal(kmeans(points, 3, 5, 0, device=device), alone)
    assert taken == [(GPU_MEMORY, 1), (GPU_MEMORY, 0)]


def test_more_types_than_different_patches_are_refused() -> None:
    points = np.repeat(normalize(np.eye(4, 8, dtype=np.float32)), 9, axis=0)
    assert hierarchical_kmeans(half_units(points), 4, 2, 10, 0).shape == (4, 8)
    with pytest.raises(InputError, match="4 different sampled patches cannot make 5"):
        hierarchical_kmeans(half_units(points), 5, 2, 10, 0)


def test_a_capped_sample_clusters_nearly_as_well() -> None:
    """A tenth of each slide's patches gives within 1 % of the inertia that all of them give."""
    slides = []
    for number in range(10):
        points, owners = blobs([1.2] * 6, 600, seed=number)
        rng = np.random.default_rng(number)
        shares = rng.dirichlet(np.ones(6))[owners]
        slides.append(points[rng.choice(len(points), 600, replace=False, p=shares / shares.sum())])
    rows = np.concatenate(slides)
    capped = np.concatenate([slide[diverse_sample(slide, 60, 0)] for slide in slides])
    assert len(rows) == 10 * len(capped)
    inertia = [
        assign(rows, hierarchical_kmeans(half_units(some), 6, 3, 5, 0))[1].mean()
        for some in (rows, capped)
    ]
    assert inertia[1] < 1.01 * inertia[0]


@pytest.mark.parametrize("seed", range(3))
def test_splits_end_in_the_best_clusters(seed: int) -> None:
    """Whatever the random starts are, the types that there are become the clusters."""
    points, owners = blobs([1.2] * 8, 60)
    labels, _ = assign(points, hierarchical_kmeans(half_units(points), 8, 4, 10, seed))
    table = np.zeros((8, 8))
    np.add.at(table, (labels, owners), 1)
    assert table.max(1).sum() / len(points) > 0.9


def test_a_sample_holds_what_is_rare() -> None:
    common, _ = blobs([0.1], 2000)
    rare = np.zeros((3, 16), np.float32)
    rare[:, 5:8] = np.eye(3) * 4
    chosen = diverse_sample(np.concatenate([common, rare]), 20, seed=1)
    assert len(set(chosen.tolist())) == 20
    assert {2000, 2001, 2002} <= set(chosen.tolist())
