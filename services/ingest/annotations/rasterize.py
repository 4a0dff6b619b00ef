"""Painting of outlines into strips of a label map, and what is covered by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import rasterio
import rasterio.features
from shapely import STRtree, box, get_parts
from shapely.affinity import scale
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.class_names import Labelled
from services.ingest.annotations.outlines import SlideGeometry
from shared.arrays import UInt8
from shared.contracts.base import Classes, spelling
from shared.imaging.label_map import LABEL_TILE


def in_order(
    labelled: Sequence[Labelled], classes: Classes, order: Sequence[str]
) -> list[Labelled]:
    """Sort outlines as they are painted, a later one over earlier ones.

    Smaller parts are painted over larger ones, whole classes in the stated order, unstated
    classes before them, and background and what is to be cut out last.
    """
    ranks = {spelling(name): rank for rank, name in enumerate(order)}
    rank = {item.index: ranks.get(spelling(item.name), -1) for item in classes.items}
    if order and rank[0] < 0 and not classes.exhaustive:
        rank[0] = len(order)
    parts = [
        Labelled(part, item.label, item.cut) for item in labelled for part in get_parts(item.area)
    ]
    return sorted(parts, key=lambda part: (part.cut, rank[part.label], -part.area.area))


def paint(
    parts: Sequence[Labelled],
    slide: SlideGeometry,
    mpp: float,
    size: tuple[int, int],
    drawn: Counter[int],
    covered: Counter[int],
) -> Iterator[UInt8]:
    """Paint outlines into a label map, a later one over earlier ones.

    A pixel is painted if its centre is inside the outline.

    Args:
        parts: outlines in level-0 pixels, in their order.
        slide: the slide.
        mpp: µm per pixel of the label map.
        size: its width and height, pixels.
        drawn: receives the number of pixels inside outlines of each class.
        covered: receives how many of them show another class than this one and background.

    Yields:
        Strips of `LABEL_TILE` rows (the last may be shorter), uint8 (rows, width).
    """
    width, height = size
    sx, sy = slide.mpp / mpp, slide.mpp_y / mpp
    areas = [scale(part.area, sx, sy, origin=(0, 0)) for part in parts]
    tree = STRtree(areas)
    for top in range(0, height, LABEL_TILE):
        rows = min(LABEL_TILE, height - top)
        here = sorted(tree.query(box(-1, top - 1, width + 1, top + rows + 1)).tolist())
        if not here:
            yield np.zeros((rows, width), np.uint8)
            continue

        def draw(shapes: list[tuple[BaseGeometry, int]], rows: int = rows, top: int = top) -> UInt8:
            return np.asarray(
                rasterio.features.rasterize(
                    shapes, out_shape=(rows, width), dtype=np.uint8,
                    transform=rasterio.Affine.translation(0, top),
                )
            )  # fmt: skip

        strip = draw([(areas[i], parts[i].label) for i in here])
        for label in sorted({parts[i].label for i in here} - {0}):
            inside = draw([(areas[i], 1) for i in here if parts[i].label == label]) > 0
            drawn[label] += int(inside.sum())
            covered[label] += int((inside & (strip != label) & (strip > 0)).sum())
        yield strip
