"""Maps of tissue types: the clusters of a slide's patches as an image."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.arrays import Float32, Int64, UInt8
from shared.contracts.ingest import PatchGrid, SlideRecord


def type_map(coords: Int64, clusters: UInt8, record: SlideRecord, grid: PatchGrid) -> UInt8:
    """Draw the clusters of a slide's patches as an image with one pixel per stride.

    A patch marks only the pixel of its left upper corner; `vote` accounts for patches that are
    larger than their stride.

    Returns:
        uint8 (height, width): cluster + 1, or 0 where there is no patch.
    """
    step = grid.stride * grid.mpp
    shape = (
        max(1, math.ceil(record.height * record.mpp_y / step)),
        max(1, math.ceil(record.width * record.mpp / step)),
    )
    labels = np.zeros(shape, np.uint8)
    columns = np.round(coords[:, 0] * record.mpp / step).astype(int)
    rows = np.round(coords[:, 1] * record.mpp_y / step).astype(int)
    labels[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)] = clusters + 1
    return labels


def vote(labels: UInt8, k: int, covers: int, radius: int) -> UInt8:
    """Choose the tissue type of each pixel by a vote of the patches around it.

    The patches that cover the pixel have a vote, and those that lie up to `radius` pixels further
    away. A tie goes to the pixel's own patch if patches do not overlap, else to the lower type.

    Args:
        labels: uint8 (height, width), made by `type_map`.
        k: number of types.
        covers: number of pixels that a patch covers in x and in y, from its corner's pixel on.
        radius: radius of the smoothing, pixels.

    Returns:
        uint8 (height, width), type from 1 to k; 0 (no tissue) if fewer than half of the
        `covers`² possible patches over the pixel exist.
    """
    side, anchor = covers + 2 * radius, covers - 1 + radius

    def count(mask: NDArray[np.bool_], size: int, at: int) -> Float32:
        votes = cv2.boxFilter(
            mask.astype(np.float32), -1, (size, size), anchor=(at, at), normalize=False,
            borderType=cv2.BORDER_CONSTANT,
        )  # fmt: skip
        return np.asarray(votes, np.float32)

    tissue = count(labels > 0, covers, covers - 1) >= covers**2 / 2
    best = np.zeros(labels.shape, np.float32)
    out = np.zeros_like(labels)
    for label in range(1, k + 1):
        mask = labels == label
        if not mask.any():
            continue
        votes = count(mask, side, anchor) + (0.5 * mask if covers == 1 else 0)
        wins = (votes > best) & tissue
        out[wins] = label
        best[wins] = votes[wins]
    return out
