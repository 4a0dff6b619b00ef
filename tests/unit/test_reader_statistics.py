"""The statistics of a reader study, against other implementations and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from services.gateway.reader_study.statistics import (
    around,
    bootstrap_means,
    cohen_kappa,
    detection,
    fleiss_kappa,
    wilson,
)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 10), (37, 60), (60, 60), (1, 1)])
def test_wilsons_interval_is_scipys(successes: int, count: int) -> None:
    found = wilson(successes, count)
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert found.value == successes / count
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)


def test_of_no_answers_nothing_is_said() -> None:
    assert wilson(0, 0).value is None
    assert detection(0, 0, 3, 5) == (None, None)
    assert cohen_kappa(np.array([], bool), np.array([], bool)) is None
    assert fleiss_kappa(np.zeros((1, 4), bool)) is None


def test_d_prime_has_the_log_linear_correction() -> None:
    d_prime, criterion = detection(hits=15, signals=20, false_alarms=5, noises=20)
    z = stats.norm.ppf([15.5 / 21, 5.5 / 21])
    assert d_prime == pytest.approx(z[0] - z[1])
    assert criterion == pytest.approx(-(z[0] + z[1]) / 2)
    perfect, _ = detection(20, 20, 0, 20)
    assert perfect is not None
    assert math.isfinite(perfect)
    guessing, leaning = detection(20, 20, 20, 20)
    assert guessing == pytest.approx(0)
    assert leaning is not None
    assert leaning < 0  # everything is called synthetic


def test_cohens_kappa_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(80) < 0.6
    second = np.where(rng.random(80) < 0.7, first, ~first)
    assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohen_kappa(first, first) == pytest.approx(1)
    assert cohen_kappa(np.ones(5, bool), np.ones(5, bool)) is None


def test_fleiss_kappa_by_hand() -> None:
    answers = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [1, 0, 0, 0]], bool)
    # agreement of pairs: 1, 1/3, 1, 1/3; share of yes: 6/12
    observed, expected = (1 + 1 / 3 + 1 + 1 / 3) / 4, 0.5
    assert fleiss_kappa(answers) == pytest.approx((observed - expected) / (1 - expected))
    assert fleiss_kappa(np.array([[1, 0], [1, 0]], bool)) == pytest.approx(1)


def test_the_bootstrap_of_one_reader_has_the_binomials_spread() -> None:
    values = np.array([[1.0] * 60 + [0.0] * 40])
    drawn = bootstrap_means(values, np.zeros(100, int))
    assert drawn.shape == (2000, 1)
    assert drawn.mean() == pytest.approx(0.6, abs=0.01)
    assert drawn.std() == pytest.approx(math.sqrt(0.6 * 0.4 / 100), rel=0.1)


def test_readers_who_differ_widen_the_interval() -> None:
    """Four readers of very different skill: images alone would promise too much."""
    rng = np.random.default_rng(1)
    skill = np.array([0.5, 0.6, 0.9, 1.0])
    values = (rng.random((4, 200)) < skill[:, None]).astype(float)
    pooled = around(values.mean(), bootstrap_means(values, np.zeros(200, int))[:, 0])
    alone = wilson(int(values.sum()), values.size)
    assert pooled.low is not None
    assert pooled.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert pooled.high - pooled.low > 2 * (alone.high - alone.low)
    assert pooled.low < values.mean() < pooled.high


def test_strata_are_drawn_apart_and_gaps_are_left_out() -> None:
    values = np.array([[1.0, 1.0, 0.0, np.nan], [1.0, np.nan, 0.0, 0.0]])
    drawn = bootstrap_means(values, np.array([0, 0, 1, 1]))
    assert np.nanmin(drawn[:, 0]) == 1
    assert np.nanmax(drawn[:, 1]) == 0
