"""Which images a reader study shows, to whom and in which order, and how they are cut."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from PIL import Image

from services.gateway.reader_study.design import (
    BLOCK,
    choose,
    class_shares,
    kind_sequences,
    share_out,
)
from services.gateway.reader_study.pictures import encode
from shared.contracts.reader_study import Kind


def test_places_tell_nothing() -> None:
    images, readers = 3 * BLOCK + 2, 4
    sequences = kind_sequences(images, readers, np.random.default_rng(0))
    for sequence in sequences:
        for start in range(0, 2 * images, 2 * BLOCK):
            counts = Counter(sequence[start : start + 2 * BLOCK])
            assert counts["real"] == counts["synthetic"]
    for place in zip(*sequences, strict=True):  # counterbalanced over readers
        assert Counter(place) == {"real": 2, "synthetic": 2}
    first = Counter(
        kind_sequences(images, 1, np.random.default_rng(seed))[0][0] for seed in range(200)
    )
    assert 70 <= first["real"] <= 130


def test_classes_are_balanced_between_kinds_where_there_are_images() -> None:
    assert share_out(10, {"a": 2, "b": 9, "c": 9}) == {"a": 2, "b": 4, "c": 4}
    assert share_out(10, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    room: dict[Kind, dict[str, int]] = {
        "real": {"stroma": 9, "tumor": 3},
        "synthetic": {"stroma": 4, "tumor": 20, "fat": 5},
    }
    assert class_shares(6, room) == {
        "real": {"fat": 0, "stroma": 3, "tumor": 3},
        "synthetic": {"fat": 0, "stroma": 3, "tumor": 3},
    }
    scarce = class_shares(9, room)
    assert {kind: sum(shares.values()) for kind, shares in scarce.items()} == {
        "real": 9, "synthetic": 9,
    }  # fmt: skip
    assert scarce["real"]["tumor"] == 3


def test_sets_of_a_kind_give_equal_shares() -> None:
    candidates = [(name, "tumor", f"{name}{i}") for name in "ab" for i in range(9)]
    chosen = choose({"tumor": 6}, candidates, np.random.default_rng(0))
    assert Counter(item[0] for item in chosen) == {"a": 3, "b": 3}
    assert len(set(chosen)) == 6


def test_pictures_are_cut_from_the_middle_and_never_resampled() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 255
    with Image.open(io.BytesIO(encode(image, 32))) as picture:
        assert np.asarray(picture).min() == 255
