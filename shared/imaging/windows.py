"""Choosing the windows of a label map that become training regions.

The rule is the heterogeneous patch sampling of HeteroTissue-Diffuse.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from shared.arrays import Float64, UInt8
from shared.contracts.regions import RegionRule


@dataclass(frozen=True)
class Window:
    """A window that the rule keeps.

    Attributes:
        x, y: upper left corner, label-map pixels.
        fractions: share of each class in the window, background first.
        entropy: Shannon entropy of the class shares, bits.
    """

    x: int
    y: int
    fractions: tuple[float, ...]
    entropy: float


def class_entropy(shares: Float64) -> Float64:
    """Return the Shannon entropy, bits, of class shares along the last axis: -Σ p_i log2 p_i."""
    safe = np.where(shares > 0, shares, 1.0)
    entropy: Float64 = -(shares * np.log2(safe)).sum(-1)
    return entropy


def choose_windows(
    labels: UInt8, classes: int, side: int, stride: int, rule: RegionRule
) -> list[Window]:
    """Choose the windows of a label map that the rule keeps.

    Args:
        labels: uint8 (height, width) label map of a slide, at any resolution.
        classes: number of classes, background included.
        side: side of a window in label-map pixels.
        stride: label-map pixels between the corners of neighbouring windows.
        rule: bounds, treatment of background, and largest number of windows.

    Returns:
        At most `rule.max_per_slide` windows, ordered by row and column. If the rule keeps more,
        those of the highest entropy are chosen.
    """
    height, width = labels.shape
    if height < side or width < side:
        return []
    ys = np.arange(0, height - side + 1, stride)
    xs = np.arange(0, width - side + 1, stride)
    fractions = np.empty((len(ys), len(xs), classes))
    for index in range(classes):
        sums = cv2.integral((labels == index).astype(np.uint8))
        lower, upper = sums[ys][:, xs], sums[ys + side][:, xs + side]
        area = upper - sums[ys][:, xs + side] - sums[ys + side][:, xs] + lower
        fractions[..., index] = area / side**2
    tissue = 1 - fractions[..., 0]
    if rule.count_background:
        shares = fractions
    else:
        shares = fractions.copy()
        shares[..., 0] = 0
        shares /= np.maximum(tissue, 1e-9)[..., None]
    between = (shares >= rule.low - 1e-9) & (shares <= rule.high + 1e-9)
    kept = (between.sum(-1) >= rule.min_classes) & (tissue >= rule.min_tissue)
    entropy = class_entropy(shares)
    rows, columns = np.nonzero(kept)
    if len(rows) > rule.max_per_slide:
        ties = np.random.default_rng(rule.seed).random(len(rows))
        best = np.lexsort((ties, -entropy[rows, columns]))[: rule.max_per_slide]
        rows, columns = rows[np.sort(best)], columns[np.sort(best)]
    return [
        Window(
            int(xs[column]),
            int(ys[row]),
            tuple(fractions[row, column].tolist()),
            float(entropy[row, column]),
        )
        for row, column in zip(rows, columns, strict=True)
    ]
