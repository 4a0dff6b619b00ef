"""Outlines strip by strip, so that each strip costs what lies in it, not all points of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
from shapely import STRtree, bounds, box, get_coordinates, get_rings
from shapely.geometry import Polygon

from shared.arrays import Float64, UInt8
from shared.errors import InputError

MAX_CROSSED, ALWAYS_CROSSED = 2, 10_000_000
"""Rows that edges of outlines may cross, for each pixel that they are painted on, and the number
that is painted on any picture. A traced outline crosses a row at most once for each pixel."""


class Strips:
    """Polygons that are painted on a picture strip by strip.

    Args:
        path: file of their annotation, for messages.
        areas: the polygons, in pixels of the picture.
        size: its width and height, pixels.

    Raises:
        InputError: their edges cross far more rows than the picture has pixels.
    """

    def __init__(self, path: Path, areas: Sequence[Polygon], size: tuple[int, int]) -> None:
        self._areas, self._width = areas, size[0]
        self._tree = STRtree(areas)
        self._lows, self._highs = bounds(areas)[:, 1], bounds(areas)[:, 3]
        _check_crossed(path, areas, size)

    def near(self, top: int, rows: int) -> list[tuple[int, Polygon]]:
        """Return the polygons that may reach into a strip, in their order, and their numbers.

        Args:
            top: first row of the strip.
            rows: its height, pixels.
        """
        low, high = top - 1.0, top + rows + 1.0
        found = sorted(self._tree.query(box(-1, low, self._width + 1, high)).tolist())
        whole = (self._lows >= low) & (self._highs <= high)
        return [
            (number, self._areas[number] if whole[number] else _cut(self._areas[number], low, high))
            for number in found
        ]

    def draw(
        self,
        shapes: Sequence[tuple[Polygon, int]],
        top: int,
        rows: int,
        *,
        all_touched: bool = False,
    ) -> UInt8:
        """Paint polygons with their values, a later one over earlier ones: uint8 (rows, width).

        A pixel is painted if its centre is inside; with `all_touched`, if any part of it is.
        """
        if not shapes:
            return np.zeros((rows, self._width), np.uint8)
        return np.asarray(
            rasterio.features.rasterize(
                shapes, out_shape=(rows, self._width), dtype=np.uint8, all_touched=all_touched,
                transform=rasterio.Affine.translation(0, top),
            )
        )  # fmt: skip


def _cut(area: Polygon, low: float, high: float) -> Polygon:
    """Return a polygon that covers the same pixels between two y, with fewer points elsewhere.

    No point is moved or made, as that could change a pixel by rounding: edges that reach between
    the two stay, and of points that follow each other on one side only the first and last do.
    """
    rings = [_shortened(get_coordinates(ring), low, high) for ring in get_rings(area)]
    outer, *holes = [ring for ring in rings if len(ring) > 3]  # others lie on one side alone
    return Polygon(outer, holes)


def _shortened(points: Float64, low: float, high: float) -> Float64:
    side = (points[:, 1] > high).astype(np.int8) - (points[:, 1] < low)
    passed = (side[1:-1] != 0) & (side[:-2] == side[1:-1]) & (side[2:] == side[1:-1])
    kept: Float64 = points[np.concatenate([[True], ~passed, [True]])]
    return kept


def _check_crossed(path: Path, areas: Sequence[Polygon], size: tuple[int, int]) -> None:
    points, ring = get_coordinates(get_rings(areas), return_index=True)
    heights = np.abs(np.diff(points[:, 1].clip(0, size[1])))
    crossed = int(heights[ring[1:] == ring[:-1]].sum())
    most = max(ALWAYS_CROSSED, MAX_CROSSED * size[0] * size[1])
    if crossed > most:
        raise InputError(
            f"the outlines of {path.name} have {len(points):,} points, whose edges cross "
            f"{crossed:,} rows of a picture of {size[0]}×{size[1]} px; at most {most:,} are "
            "painted: they are finer than its pixels. Simplify them where they were drawn"
        )
