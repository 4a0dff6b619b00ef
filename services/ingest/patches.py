"""The patch index: a table of the patches of a slide that hold tissue."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.arrays import Float64, Int64
from shared.contracts.ingest import PatchGrid
from shared.errors import InputError
from shared.imaging.label_map import LabelMap
from shared.imaging.slide import Slide

COLUMNS = pa.schema(
    [
        ("x", pa.int64()),  # left upper corner, level-0 pixels
        ("y", pa.int64()),
        ("size", pa.int32()),  # side, pixels at mpp
        ("mpp", pa.float64()),
        ("tissue", pa.float32()),  # share of the patch, 0 to 1
        ("fractions", pa.list_(pa.float32())),  # share per class; null without labels
    ]
)


def check_size(slide: Slide, grid: PatchGrid) -> None:
    """Raise `InputError` if a slide is smaller than one patch."""
    if min(slide.width * slide.mpp, slide.height * slide.mpp_y) < grid.size * grid.mpp:
        raise InputError(
            f"{slide.path.name} is {slide.width}×{slide.height} px, smaller than one patch of "
            f"{grid.size} px at {grid.mpp} µm/px: leave it out"
        )


def patch_index(
    slide: Slide, tissue: NDArray[np.bool_], grid: PatchGrid, labels: LabelMap | None, classes: int
) -> pa.Table:
    """List the patches of a slide that hold enough tissue, row by row.

    Args:
        slide: the open slide.
        tissue: bool mask of the whole slide at any resolution.
        grid: size, stride and resolution of patches, and their smallest tissue share.
        labels: label map of the slide; None if it is not annotated.
        classes: number of classes, background included.

    Returns:
        A table with `COLUMNS`.
    """
    side, side_y = grid.size * grid.mpp / slide.mpp, grid.size * grid.mpp / slide.mpp_y
    step, step_y = grid.stride * grid.mpp / slide.mpp, grid.stride * grid.mpp / slide.mpp_y
    xs = np.arange(max(0, int((slide.width - side) / step) + 1), dtype=np.float64) * step
    ys = np.arange(max(0, int((slide.height - side_y) / step_y) + 1), dtype=np.float64) * step_y
    if side > slide.width or side_y > slide.height:
        xs, ys = xs[:0], ys[:0]
    share = box_shares(tissue, xs, ys, side, side_y, slide.width, slide.height)
    rows, columns = np.nonzero(share >= grid.min_tissue)
    fractions = None
    if labels is not None:
        whole = labels.whole()
        per_class = [
            box_shares(whole == index, xs, ys, side, side_y, slide.width, slide.height)
            for index in range(classes)
        ]
        fractions = np.stack(per_class, -1)[rows, columns].astype(np.float32).tolist()
    count = len(rows)
    table = pa.table(
        [
            pa.array(np.round(xs[columns]).astype(np.int64)),
            pa.array(np.round(ys[rows]).astype(np.int64)),
            pa.array(np.full(count, grid.size, np.int32)),
            pa.array(np.full(count, grid.mpp)),
            pa.array(share[rows, columns].astype(np.float32)),
            pa.array(fractions or [None] * count, pa.list_(pa.float32())),
        ],
        schema=COLUMNS,
    )
    return table


def box_shares(
    mask: NDArray[np.bool_],
    xs: Float64,
    ys: Float64,
    side: float,
    side_y: float,
    width: int,
    height: int,
) -> Float64:
    """Compute the share of each box of a grid that a mask covers.

    Args:
        mask: bool mask of the whole slide, at any resolution.
        xs, ys: left and upper edges of the boxes, level-0 pixels.
        side, side_y: width and height of a box, level-0 pixels.
        width, height: size of the slide, level-0 pixels.

    Returns:
        float64 (len(ys), len(xs)), 0 to 1.
    """
    if not len(xs) or not len(ys):
        return np.zeros((len(ys), len(xs)))
    sums = cv2.integral(mask.astype(np.uint8))
    fx, fy = mask.shape[1] / width, mask.shape[0] / height
    x0, x1 = _edges(xs * fx, side * fx, mask.shape[1])
    y0, y1 = _edges(ys * fy, side_y * fy, mask.shape[0])
    total = sums[y1][:, x1] - sums[y0][:, x1] - sums[y1][:, x0] + sums[y0][:, x0]
    area = (y1 - y0)[:, None] * (x1 - x0)[None]
    shares: Float64 = total / area
    return shares


def _edges(starts: Float64, length: float, limit: int) -> tuple[Int64, Int64]:
    first = np.minimum(np.round(starts).astype(np.int64), limit - 1)
    last = np.minimum(np.maximum(np.round(starts + length).astype(np.int64), first + 1), limit)
    return first, last
