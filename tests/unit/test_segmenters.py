"""Segmenters: their scores, their training, and what is checked before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.evaluate.segmentation import (
    check_segmenter,
    confusion,
    iou_scores,
    make_segmenter,
    to_input,
    train_segmenter,
)
from shared.errors import InputError
from tests.region_sets import CLASSES, texture_region


def test_iou_by_hand() -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[1] = [0, 3, 1, 0]  # class 3 is absent from the truth and predicted once
    counts[2] = [0, 2, 1, 1]
    scores = iou_scores(counts, 1)
    assert scores.iou == (3 / 6, 1 / 5, None)
    assert scores.mean_iou == pytest.approx((3 / 6 + 1 / 5) / 2)
    assert scores.accuracy == pytest.approx(4 / 8)
    assert iou_scores(np.zeros((3, 3), np.int64), 1).mean_iou is None


class Textures:
    """Real-looking pairs of two tissues."""

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self.regions = [texture_region(f"s_{i}_0", "s", size, rng) for i in range(count)]

    def __len__(self) -> int:
        return len(self.regions)

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        return self.regions[number].image, self.regions[number].labels


def test_the_segmenter_learns_and_repeats_itself() -> None:
    pairs = Textures(8, 64)

    def trained(steps: int) -> float:
        model = make_segmenter("resnet18", CLASSES, 0)
        train_segmenter(
            model, pairs, first=1, size=64, steps=steps, batch=4, seed=0, device="cpu",
            progress=lambda _: None,
        )  # fmt: skip
        counts = confusion(
            model, pairs, range(8), classes=CLASSES, size=64, batch=4, device="cpu",
            progress=lambda _: None,
        )  # fmt: skip
        assert counts.sum() == sum((pairs.pair(i)[1] > 0).sum() for i in range(8))
        score = iou_scores(counts, 1).mean_iou
        assert isinstance(score, float)
        return score

    assert trained(24) > 0.6
    assert trained(2) == trained(2)
    with pytest.raises(InputError, match="no encoder 'resnet1'"):
        make_segmenter("resnet1", CLASSES, 0)
    ends = to_input(np.array([0, 255], np.uint8).repeat(3).reshape(1, 1, 2, 3))
    assert ends[0, 0, 0].tolist() == [-1, 1]


def test_synthetic_pairs_give_way_to_the_real_ones() -> None:
    drawn: list[str] = []
    seen: list[list[str]] = []

    class Named(Textures):
        def __init__(self, name: str) -> None:
            super().__init__(8, 64)
            self.name = name

        def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
            drawn.append(self.name)
            return super().pair(number)

    def after_step(_: int) -> None:
        seen.append(drawn.copy())
        drawn.clear()

    train_segmenter(
        make_segmenter("resnet18", CLASSES, 0), Named("real"), first=1, size=64, steps=4, batch=8,
        seed=0, device="cpu", progress=after_step, synthetic=Named("synthetic"),
    )  # fmt: skip
    assert [step.count("synthetic") for step in seen] == [4, 3, 2, 1]
    assert all(len(step) == 8 for step in seen)


def test_a_segmenter_can_start_from_imagenet() -> None:
    one, other = (make_segmenter("efficientnet-lite0", CLASSES, seed) for seed in (0, 1))
    stems = [
        dict(model.named_parameters())["1.encoder.model.conv_stem.weight"] for model in (one, other)
    ]
    assert torch.equal(*stems)
    assert one.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_sides_and_encoders_are_tried_before_hours_are_spent() -> None:
    check_segmenter("resnet18", CLASSES, 48)
    with pytest.raises(InputError, match=r"'resnet18' for images of 40 px.*divisible by 16"):
        check_segmenter("resnet18", CLASSES, 40)
    with pytest.raises(InputError, match=r"no segmenter with encoder 'tu-none'.*Unknown model"):
        check_segmenter("tu-none", CLASSES, 48)
