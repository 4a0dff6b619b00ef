"""Segmenters of the benchmarks, trained and scored as those of reports are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from benchmarks.fields import ENCODER, Tile
from services.evaluate.data import Pairs
from services.evaluate.segmentation import (
    IouScores,
    confusion,
    iou_scores,
    make_segmenter,
    train_segmenter,
)
from shared.arrays import UInt8
from shared.contracts.base import Classes

STEPS, BATCH = 300, 16


class TilePairs:
    """Tiles in memory, as segmenters take them."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def pair(self, number: int) -> tuple[UInt8, UInt8]:
        """Return the image and the labels of a tile."""
        return self.tiles[number].image, self.tiles[number].labels

    def origins(self, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the slide of a tile."""
        return (self.tiles[number].slide,), ()


def trained(
    pairs: Pairs, classes: Classes, size: int, seed: int, synthetic: Pairs | None = None
) -> nn.Module:
    """Train a segmenter on images, and on synthetic ones beside them."""
    model = make_segmenter(ENCODER, classes, seed)
    train_segmenter(
        model, pairs, first=classes.first, size=size, steps=STEPS, batch=BATCH, seed=seed,
        device="cpu", progress=lambda _: None, synthetic=synthetic,
    )  # fmt: skip
    return model


def scored(model: nn.Module, pairs: Pairs, classes: Classes, size: int) -> IouScores:
    """Score a segmenter on images."""
    counts = confusion(
        model, pairs, range(len(pairs)), classes=classes, size=size, batch=BATCH, device="cpu",
        progress=lambda _: None,
    )  # fmt: skip
    return iou_scores(counts, classes.first)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and the standard deviation of some scores."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
