"""Painting of outlines into strips of a label map, and what is covered by others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shapely import get_parts
from shapely.affinity import scale

from services.ingest.annotations.class_names import Labelled
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.strips import Strips
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
    path: Path,
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
        path: file of the outlines, for messages.
        parts: outlines in level-0 pixels, in their order, each of one polygon.
        slide: the slide.
        mpp: µm per pixel of the label map.
        size: its width and height, pixels.
        drawn: receives the number of pixels inside outlines of each class.
        covered: receives how many of them show another class than this one and background.

    Yields:
        Strips of `LABEL_TILE` rows (the last may be shorter), uint8 (rows, width).

    Raises:
        InputError: the outlines are far finer than the pixels.
    """
    sx, sy = slide.mpp / mpp, slide.mpp_y / mpp
    strips = Strips(path, [scale(part.area, sx, sy, origin=(0, 0)) for part in parts], size)
    for top in range(0, size[1], LABEL_TILE):
        rows = min(LABEL_TILE, size[1] - top)
        here = [(area, parts[number].label) for number, area in strips.near(top, rows)]
        strip = strips.draw(here, top, rows)
        for label in sorted({label for _, label in here} - {0}):
            inside = strips.draw([item for item in here if item[1] == label], top, rows) > 0
            drawn[label] += int(inside.sum())
            covered[label] += int((inside & (strip != label) & (strip > 0)).sum())
        yield strip
