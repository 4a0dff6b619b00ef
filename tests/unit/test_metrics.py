"""Fréchet statistics, manifold scores, stain, retrieval, leakage: against known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from services.evaluate import coverage
from services.evaluate.coverage import manifold_scores
from services.evaluate.frechet import (
    Moments,
    bootstrap,
    distance_of,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from services.evaluate.leakage import authenticity
from services.evaluate.retrieval import retrieval_top1
from services.evaluate.stain import StainStatistics, stain_error, stain_statistics
from shared.imaging.density import optical_density


def normal(seed: int, *shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(size=shape)


def moments(features: np.ndarray) -> Moments:  # type: ignore[type-arg]
    return Moments(features.shape[1]).update(features)


# Fréchet distance


@pytest.mark.parametrize(("n", "m", "dim"), [(40, 30, 64), (30, 200, 64), (200, 150, 64)])
def test_distance_of_agrees_with_that_of_moments(n: int, m: int, dim: int) -> None:
    one, other = normal(0, n, dim), 1.5 * normal(1, m, dim) + 0.2
    by_moments = frechet_distance(moments(one), moments(other))
    assert distance_of(one, other) == pytest.approx(by_moments, rel=1e-6)


def test_distance_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    torch = pytest.importorskip("torch")

    class Identity(torch.nn.Module):  # type: ignore[misc, name-defined]
        num_features = 16

        def forward(self, features):  # type: ignore[no-untyped-def]
            return features

    one, other = normal(0, 300, 16), normal(1, 200, 16) @ normal(2, 16, 16) + 0.5
    theirs = fid.FrechetInceptionDistance(
        Identity(), normalize=True, input_img_size=(16,)
    ).set_dtype(torch.float64)
    theirs.update(torch.tensor(one), real=True)
    theirs.update(torch.tensor(other), real=False)
    assert distance_of(one, other) == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_bootstrap_holds_the_distance_and_repeats_with_its_seed() -> None:
    one, other = normal(0, 4000, 2), normal(1, 4000, 2) + np.array([3, 0])
    groups = np.arange(4000) // 40
    low, high = bootstrap(
        one, other, 40, np.random.default_rng(0), groups_one=groups, groups_other=groups
    )
    again = bootstrap(
        one, other, 40, np.random.default_rng(0), groups_one=groups, groups_other=groups
    )
    assert low < distance_of(one, other) < high
    assert high - low < 1
    assert (low, high) == again


def test_bootstrap_is_wider_where_images_of_a_slide_are_alike() -> None:
    slides = np.repeat(np.arange(20), 50)
    one = normal(0, 1000, 3) * 0.1 + normal(1, 20, 3)[slides]
    other = normal(2, 1000, 3)

    def width(groups: np.ndarray) -> float:  # type: ignore[type-arg]
        low, high = bootstrap(
            one, other, 60, np.random.default_rng(0),
            groups_one=groups, groups_other=np.arange(1000),
        )  # fmt: skip
        return high - low

    assert width(slides) > 2 * width(np.arange(1000))


def test_bootstrap_resamples_whole_slides() -> None:
    """Two slides of one side: either alone, or both; so the distance has three values."""
    one = np.concatenate([normal(0, 30, 4), normal(1, 30, 4) + 9])
    other = normal(2, 50, 4)
    slides = np.repeat([7, 3], 30)
    low, high = bootstrap(
        one, other, 40, np.random.default_rng(0),
        groups_one=slides, groups_other=np.zeros(50, np.int64),
    )  # fmt: skip
    twice = [distance_of(np.tile(one[slides == slide], (2, 1)), other) for slide in (7, 3)]
    assert high - low == pytest.approx(max(twice) - min(twice))
    assert low < distance_of(one, other) < high


def test_features_that_are_no_good_are_refused() -> None:
    good, groups = normal(0, 6, 3), np.arange(6)
    with pytest.raises(ValueError, match=r"other: dim is 2, not 3"):
        distance_of(good, good[:, :2])
    with pytest.raises(ValueError, match=r"one: need features \(2 or more, dim\), not \(1, 3\)"):
        distance_of(good[:1], good)
    broken = good.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="synthetic: 1 of 6 rows are not finite"):
        manifold_scores(good, broken)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one group per feature"):
        bootstrap(good, good, 2, rng, groups_one=groups[:5], groups_other=groups)
    with pytest.raises(ValueError, match="at least 1 draw, not 0"):
        bootstrap(good, good, 0, rng, groups_one=groups, groups_other=groups)


# Reference statistics


def test_statistics_survive_a_round_trip() -> None:
    reference, other = moments(normal(0, 50, 5)), moments(normal(1, 60, 5) + 1)
    data = save_statistics(reference, encoder="uni", source="TCGA", size=256, mpp=0.5)
    found = load_statistics(data)
    assert (found.encoder, found.source, found.size, found.mpp) == ("uni", "TCGA", 256, 0.5)
    assert found.moments.count == 50
    same = found.distance(other, encoder="uni", size=256, mpp=0.51)
    assert same == pytest.approx(frechet_distance(reference, other))
    with pytest.raises(ValueError, match="'dino' cannot be compared with those of 'uni'"):
        found.distance(other, encoder="dino", size=256, mpp=0.5)
    for size, mpp in ((224, 0.5), (256, 1.0)):
        with pytest.raises(ValueError, match=f"{size} px at {mpp} .* those of 256 px at 0.5"):
            found.distance(other, encoder="uni", size=size, mpp=mpp)


def test_loaded_statistics_can_be_added_to() -> None:
    features = normal(0, 50, 5)
    data = save_statistics(moments(features[:20]), encoder="e", source="s", size=64, mpp=1)
    grown = load_statistics(data).moments.update(features[20:])
    np.testing.assert_allclose(grown.covariance, moments(features).covariance)


def test_damaged_statistics_are_refused() -> None:
    data = save_statistics(moments(normal(0, 9, 4)), encoder="e", source="s", size=64, mpp=1)
    flipped = bytearray(data)
    flipped[-3] ^= 1
    foreign = safetensors.numpy.save({"mean": np.zeros(3)})
    header = int.from_bytes(data[:8], "little")
    future = data[8 : 8 + header].replace(b"frechet-1", b"frechet-9")
    for damaged, why in (
        (b"", "damaged"),
        (data[:-8], "damaged"),
        (data[:40], "damaged"),
        (bytes(flipped), "checksum differs"),
        (foreign, "not a file of Fréchet statistics"),
        (data[:8] + future + data[8 + header :], "format 'heterotissue-frechet-9'"),
    ):
        with pytest.raises(ValueError, match=why):
            load_statistics(damaged)


def test_statistics_describe_themselves_in_their_header() -> None:
    data = save_statistics(moments(normal(0, 9, 4)), encoder="e", source="s", size=64, mpp=1)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["statistics"])
    assert about["n"] == 9
    assert about["encoder"] == "e"


# Precision, recall, density, coverage


def brute_force_scores(real, fake):  # type: ignore[no-untyped-def]
    def radius(points, index, k):  # type: ignore[no-untyped-def]
        return sorted(np.linalg.norm(points - points[index], axis=1))[k]

    def inside(point, points, k):  # type: ignore[no-untyped-def]
        return [np.linalg.norm(point - p) <= radius(points, i, k) for i, p in enumerate(points)]

    balls = np.array([inside(point, real, 5) for point in fake])
    return {
        "precision": np.mean([any(inside(point, real, 3)) for point in fake]),
        "recall": np.mean([any(inside(point, fake, 3)) for point in real]),
        "density": balls.sum() / (5 * len(fake)),
        "coverage": balls.any(0).mean(),
    }


@pytest.mark.parametrize("chunk", [1, 100, 2_000_000])
def test_manifold_scores_agree_with_brute_force(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "DISTANCES_AT_ONCE", chunk)
    real, fake = normal(0, 40, 5), 1.2 * normal(1, 30, 5) + 1
    scores = manifold_scores(real, fake)
    assert scores._asdict() == pytest.approx(brute_force_scores(real, fake))
    assert all(0 < score < 1 for score in scores)


def test_manifold_scores_of_equal_and_of_far_sets() -> None:
    real = normal(0, 50, 8).astype(np.float32) + 100
    doubled = np.concatenate([real] * 7)  # radii of 0: only equal features are near
    for features in (real, doubled):
        same = manifold_scores(features, features.copy())
        assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert set(manifold_scores(real, real + 1000)) == {0}


def test_a_generator_of_one_mode_is_precise_but_has_no_recall() -> None:
    real = np.concatenate([normal(0, 100, 4), normal(1, 100, 4) + 50])
    scores = manifold_scores(real, normal(2, 100, 4))
    assert scores.precision > 0.8
    assert scores.recall < 0.55
    assert scores.coverage < 0.55


def test_manifold_scores_need_more_features_than_neighbours() -> None:
    with pytest.raises(ValueError, match=r"synthetic: need features \(6 or more"):
        manifold_scores(normal(0, 6, 3), normal(1, 5, 3))


# Stain


def test_optical_density_of_black_and_white() -> None:
    pixels = np.array([[255, 127, 0]], np.uint8)
    np.testing.assert_allclose(optical_density(pixels), [[0, np.log10(2), np.log10(256)]])


def test_stain_statistics_are_those_of_the_mask() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    inside, crop = stain_statistics(image, mask), stain_statistics(image[:4], None)
    assert stain_error(inside, crop) == pytest.approx(0, abs=1e-6)
    assert stain_error(inside, stain_statistics(image, None)) > 0.01
    with pytest.raises(ValueError, match="at least 2 pixels, not 0"):
        stain_statistics(image, mask & False)
    with pytest.raises(ValueError, match=r"the mask is \(4, 16\)"):
        stain_statistics(image, mask[:4])


def test_stain_error_of_known_gaussians() -> None:
    """Of diagonal Gaussians: d² = |Δμ|² + Σ (σ1 - σ2)²."""
    one = StainStatistics(np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    other = StainStatistics(np.array([3.0, 0.0, 0.0]), np.diag([4.0, 25.0, 4.0]))
    assert stain_error(one, other) == pytest.approx(np.sqrt(9 + 1 + 9 + 4))
    assert stain_error(other, one) == pytest.approx(stain_error(one, other))


def test_stain_error_of_half_the_light_is_its_density() -> None:
    image = np.full((8, 8, 3), 199, np.uint8)
    darker = np.full((8, 8, 3), (99, 199, 199), np.uint8)
    error = stain_error(stain_statistics(image, None), stain_statistics(darker, None))
    assert error == pytest.approx(np.log10(2))


# Retrieval


def test_retrieval_of_exact_keys_and_of_noise() -> None:
    keys = normal(0, 600, 16) * np.logspace(-3, 3, 16)
    labels, groups = np.arange(600) % 3, np.arange(600) // 60
    rng = np.random.default_rng(0)
    exact = retrieval_top1(keys, keys, labels, groups, rng=rng)
    assert exact.model_dump() == {"top1": 1, "n": 600, "skipped": 0, "chance": 1 / 32}
    noise = retrieval_top1(normal(1, 600, 16), normal(2, 600, 16), labels, groups, rng=rng)
    assert noise.top1 == pytest.approx(1 / 32, abs=0.025)


def test_retrieval_gives_no_credit_for_ties() -> None:
    keys = np.ones((80, 4))
    found = retrieval_top1(
        keys, keys, np.zeros(80, np.int64), np.arange(80), rng=np.random.default_rng(0)
    )
    assert found.top1 == 0


def test_retrieval_draws_wrong_keys_of_the_label_from_other_slides() -> None:
    """Nearer keys of the same slide, or of another label, must not be among the wrong ones."""
    position = np.arange(10.0)
    keys = np.repeat(position, 2)[:, None] * 10  # both of a pair alike: one is the decoy
    slides = np.repeat(np.arange(10), 2)
    rng = np.random.default_rng(0)
    same_slide = retrieval_top1(keys, keys, np.zeros(20, np.int64), slides, 9, rng=rng)
    assert same_slide.top1 == 1
    other_label = retrieval_top1(keys, keys, np.arange(20) % 2, np.arange(20), 9, rng=rng)
    assert other_label.top1 == 1


def test_retrieval_counts_queries_that_it_leaves_out() -> None:
    keys = normal(0, 40, 4)
    labels = np.repeat([0, 1], [35, 5])
    groups = np.arange(40)
    found = retrieval_top1(keys, keys, labels, groups, rng=np.random.default_rng(0))
    assert (found.n, found.skipped) == (35, 5)
    alone = retrieval_top1(keys, keys, labels, groups * 0, rng=np.random.default_rng(0))
    assert (alone.top1, alone.n, alone.skipped) == (None, 0, 40)
    with pytest.raises(ValueError, match=r"differ in number: \[40, 40, 40, 39\]"):
        retrieval_top1(keys, keys, labels, groups[:39], rng=np.random.default_rng(0))


# Copies of training images


def test_a_generator_that_memorizes_is_told_from_an_honest_one() -> None:
    train, held_out, honest = normal(0, 400, 16), normal(1, 300, 16), normal(2, 300, 16)
    fair = authenticity(honest, train, held_out)
    assert not fair.significant
    assert fair.excess_copies <= fair.excess_bound
    assert abs(fair.c_t) < 3
    assert fair.authentic == pytest.approx(fair.authentic_held_out, abs=0.1)

    copies = train[:300] + 0.02 * normal(3, 300, 16)
    caught = authenticity(copies, train, held_out)
    assert caught.significant
    assert caught.excess_copies > 0.95
    assert caught.authentic == 0
    assert caught.c_t < -10

    some = authenticity(np.concatenate([honest[:270], train[:30]]), train, held_out)
    assert some.significant
    assert some.excess_copies == pytest.approx(0.1, abs=0.02)


def test_authenticity_agrees_with_brute_force() -> None:
    scipy = pytest.importorskip("scipy.stats")
    train, held_out, made = normal(0, 40, 3), normal(1, 30, 3), 0.7 * normal(2, 25, 3)

    def relative(point: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
        distances = np.linalg.norm(train - point, axis=1)
        near = distances.argmin()
        own = np.delete(np.linalg.norm(train - train[near], axis=1), near).min()
        return distances[near], distances[near] / own

    synthetic, fresh = (np.array([relative(p) for p in points]) for points in (made, held_out))
    found = authenticity(made, train, held_out)
    assert found.authentic == pytest.approx((synthetic[:, 1] > 1).mean())
    assert found.authentic_held_out == pytest.approx((fresh[:, 1] > 1).mean())
    u = scipy.mannwhitneyu(synthetic[:, 0], fresh[:, 0]).statistic
    score = (u - 25 * 30 / 2) / np.sqrt(25 * 30 * 56 / 12)
    assert found.c_t == pytest.approx(score)


def test_honest_generators_are_rarely_called_copiers() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(100, 3))
    called = [
        authenticity(rng.normal(size=(200, 3)), train, rng.normal(size=(150, 3))).significant
        for _ in range(300)
    ]
    assert np.mean(called) < 0.08


def test_copies_of_training_images_that_occur_twice_are_found() -> None:
    once = normal(0, 50, 8).astype(np.float32)
    twice = np.concatenate([once, once])
    found = authenticity(once, twice, normal(1, 200, 8))
    assert found.significant
    assert found.authentic == 0
    assert found.authentic_held_out == 1


def test_authenticity_needs_two_training_images() -> None:
    with pytest.raises(ValueError, match="train: need at least 2 features, not 1"):
        authenticity(normal(0, 5, 3), normal(1, 1, 3), normal(2, 5, 3))
