"""Membership inference: its figures, intervals and attacks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from services.evaluate.membership import by_neighbours, membership


def test_what_a_model_remembers_is_found() -> None:
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(2, 1, 300), rng.normal(0, 1, 200)
    groups = [f"a{n % 10}" for n in range(300)], [f"b{n % 8}" for n in range(200)]
    found = membership(train, held_out, groups, 0)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert found.auc == pytest.approx(roc_auc_score(truth, np.r_[train, held_out]))
    threshold = np.sort(held_out)[-3]  # two of 200 held-out images lie above
    assert found.found == pytest.approx((train > threshold).mean())
    assert found.auc_interval[0] < found.auc < found.auc_interval[1]
    assert found.found_interval[0] < found.found < found.found_interval[1]
    assert (found.n, found.patients) == ((300, 200), (10, 8))
    assert membership(train, held_out, groups, 0) == found


def test_where_nothing_is_remembered_it_is_guessing() -> None:
    rng = np.random.default_rng(1)
    groups = [str(n % 20) for n in range(400)]
    found = membership(rng.normal(size=400), rng.normal(size=400), (groups, groups), 0)
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
    assert found.found < 0.05


def test_ties_are_no_hits() -> None:
    same = membership(np.ones(50), np.ones(50), (["a"] * 50, ["b"] * 50), 0)
    assert (same.auc, same.found) == (0.5, 0.0)


def test_copies_in_a_dataset_give_the_training_images_away() -> None:
    rng = np.random.default_rng(2)
    train, test = (rng.normal(size=(60, 8)).astype(np.float32) for _ in range(2))
    copies = train + rng.normal(0, 0.01, train.shape).astype(np.float32)
    groups = [str(n % 6) for n in range(60)], [str(n % 6) for n in range(60)]
    assert by_neighbours(train, test, copies, groups, 0).auc == 1
    fresh = rng.normal(size=(200, 8)).astype(np.float32)
    assert abs(by_neighbours(train, test, fresh, groups, 0).auc - 0.5) < 0.15
