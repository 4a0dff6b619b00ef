"""Fréchet distance, precision and recall, nearest neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from services.evaluate.fidelity import FeatureSet, fidelity, halves, make_own_folds, nearest
from services.evaluate.frechet import Moments, distance_of, frechet_distance


def test_frechet_agrees_with_the_direct_formula() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    other = rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12)) + 0.5
    a, b = np.cov(one.T), np.cov(other.T)
    gap = one.mean(0) - other.mean(0)
    direct = gap @ gap + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert distance_of(one, other) == pytest.approx(direct, rel=1e-9)
    assert distance_of(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_of_known_gaussians() -> None:
    """Of diagonal Gaussians: d² = |Δμ|² + Σ (σ1 - σ2)²."""
    one, other = Moments(2), Moments(2)
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4)
    one.update(corners * [1, 2])
    other.update(corners * [3, 5] + [10, 0])
    assert frechet_distance(one, other) == pytest.approx(100 + 4 + 9)


def test_frechet_of_fewer_images_than_dimensions_is_finite() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(5, 64)).astype(np.float32)
    assert distance_of(features, features) == pytest.approx(0, abs=1e-5)
    assert distance_of(features, features + 1) == pytest.approx(64, rel=1e-5)


def test_moments_of_a_stream_are_those_of_the_whole() -> None:
    data = np.random.default_rng(2).normal(5, 3, (57, 6))
    moments = Moments(6)
    for part in np.split(data, [1, 10, 40]):
        moments.update(part)
    assert np.allclose(moments.mean, data.mean(0))
    assert np.allclose(moments.covariance, np.cov(data.T))


def features(seed: int, slides: list[str], shift: float = 0.0, dim: int = 4) -> FeatureSet:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(slides), 2, dim)) + shift
    return FeatureSet(values.astype(np.float32), [(slide,) for slide in slides])


def test_fidelity_compares_at_one_n_and_says_when_it_is_small() -> None:
    test = features(0, ["a"] * 30 + ["b"] * 20 + ["c"] * 30)
    sources = {"near": features(1, ["x"] * 90), "far": features(2, ["x"] * 60, 2.0)}
    found = fidelity(test, sources, 0)
    assert found.n == 30
    assert found.reliable
    wide = features(0, ["a"] * 30 + ["b"] * 30, dim=16)  # two views each, much alike
    assert not fidelity(wide, {}, 0).reliable
    rows = found.rows
    assert rows["far"].frechet > 10 > rows["near"].over_floor
    assert rows["floor"].interval[0] <= rows["floor"].frechet <= rows["floor"].interval[1]
    assert rows["near"].recall > rows["far"].recall
    small = fidelity(features(3, ["a", "b", "c"]), {"few": features(4, ["x"] * 2)}, 0)
    assert not small.reliable
    assert small.rows == {}


def test_images_are_never_held_against_the_slides_they_were_made_from() -> None:
    test = features(0, ["a"] * 60 + ["b"] * 60)
    copies = FeatureSet(test.values.copy(), test.slides)
    honest = fidelity(test, {"copies": copies}, 0).rows
    assert honest["copies"].frechet == pytest.approx(honest["floor"].frechet)
    stolen = FeatureSet(test.values.copy(), [("elsewhere",)] * 120)
    rows = fidelity(test, {"stolen": stolen}, 0).rows
    assert rows["stolen"].frechet < rows["floor"].frechet
    crops_of = FeatureSet(stolen.values, [("elsewhere", *own) for own in test.slides])
    rows = fidelity(test, {"crops of": crops_of}, 0).rows
    assert rows["crops of"].frechet == pytest.approx(honest["floor"].frechet)


def test_precision_and_recall_are_taken_at_the_n_of_the_distance() -> None:
    """Among more images every real one finds a near one: a larger set must not look better."""
    test = features(0, ["a"] * 150 + ["b"] * 150)
    many = features(1, ["x"] * 4000)
    few = FeatureSet(many.values[:150], many.slides[:150])
    rows = fidelity(test, {"many": many, "few": few}, 0).rows
    for score in ("precision", "recall", "density", "coverage"):
        assert getattr(rows["many"], score) == pytest.approx(
            getattr(rows["few"], score), abs=0.15
        ), score
        assert getattr(rows["few"], score) == pytest.approx(
            getattr(rows["floor"], score), abs=0.15
        ), score


def test_images_that_take_on_their_slides_looks_come_nearer_to_their_own_slides() -> None:
    """Slides differ by a shift; images follow their slide's, or are drawn from all slides'."""
    slides = [f"s{number // 20}" for number in range(200)]
    shifts = np.repeat(np.random.default_rng(0).normal(scale=3, size=(10, 1, 4)), 20, 0)
    keys = [(f"r{number}",) for number in range(200)]

    def drawn(seed: int, order: np.ndarray) -> FeatureSet:  # type: ignore[type-arg]
        made = features(seed, slides)
        return FeatureSet((made.values + shifts[order]).astype(np.float32), made.slides, keys)

    near = np.arange(200)
    astray = np.zeros(200, int)  # all look like the first slide
    test = drawn(1, near)
    sources = {"follows": drawn(2, near), "astray": drawn(3, astray), "copies": drawn(1, near)}
    found = fidelity(test, sources, 0)
    rows = found.rows
    assert found.n_own_slides == 66
    assert rows["follows"].own_slides < 2 * rows["floor"].own_slides
    assert rows["astray"].own_slides > 5 * rows["follows"].own_slides
    assert rows["copies"].own_slides == pytest.approx(rows["floor"].own_slides)
    other = FeatureSet(test.values, [("elsewhere",)] * 200, keys)
    assert fidelity(test, {"other": other}, 0).rows["other"].own_slides is None


def test_images_are_never_held_against_the_regions_of_their_crops() -> None:
    """Images that repeat the region of their crop, and not that of their map."""
    test = replace(features(0, ["a"] * 60 + ["b"] * 60), regions=[(f"r{n}",) for n in range(120)])
    crops = [(number + 1) % 60 + number // 60 * 60 for number in range(120)]
    repeats = FeatureSet(
        test.values[crops], test.slides, [(f"r{n}", f"r{crop}") for n, crop in enumerate(crops)]
    )
    for fold in make_own_folds(test, {"repeats": repeats}):
        shown = {crops[number] for number in fold.candidates["repeats"]}
        assert shown
        assert not shown & set(fold.reference.tolist())


def test_slides_are_halved_whole() -> None:
    one, other = halves(np.array(["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"]))
    assert one | other == {"a", "b", "c", "d"}
    assert not one & other
    assert {len(one), len(other)} == {2}


def test_nearest_is_by_direction() -> None:
    bank = np.array([[1, 0], [0, 5], [3, 3]], np.float32)
    assert nearest(np.array([[0, 1], [9, 8]], np.float32), bank) == [1, 2]
