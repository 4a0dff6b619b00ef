"""Reading many patches of a slide beside the work on them, in the order of the slide's tiles."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shared.arrays import Int64, UInt8
from shared.imaging.sandboxed_slide import SLOT_BYTES, SLOTS, SandboxedSlide
from shared.imaging.slide import WINDOW_PIXELS, DamagedError, Slide

_NO_TILES = 512
"""Side of the squares, pixels of a level, that patches are ordered by where it has no tiles."""


class PatchBatch(NamedTuple):
    """Some patches of a slide.

    Attributes:
        rows: int64 (n,), their places among the corners.
        images: uint8 RGB (n, side, side, 3). They are overwritten when the next batch is taken.
        damaged: number of further patches that the batch should hold, and that cannot be read.
    """

    rows: Int64
    images: UInt8
    damaged: int


def read_patches(
    slide: Slide, corners: Int64, side: int, mpp: float, at_once: int
) -> Iterator[PatchBatch]:
    """Read patches; the next ones are read while the caller works on a batch.

    Neighbours come together, so each tile of the slide is decoded once. At most two batches wait.

    Args:
        slide: the slide. Nobody else may read it meanwhile.
        corners: int64 (n, 2), x and y of each upper left corner, level-0 pixels.
        side: side of a patch, pixels at `mpp`.
        mpp: µm per pixel.
        at_once: largest number of patches of a batch; fewer if they would take over 64 MiB.

    Raises:
        InputError: `mpp` is finer than the slide, or its process was lost.
    """
    slide.check_mpp(mpp)
    level, spans = slide.layout((side, side), mpp)
    source = slide.source
    fitting = min(at_once, SLOT_BYTES // (3 * side * side))
    if not isinstance(source, SandboxedSlide) or not fitting or spans[0] * spans[1] > WINDOW_PIXELS:
        yield from _one_by_one(slide, corners, side, mpp, at_once)
        return
    order = tile_order(slide, corners, level)
    parts = [order[start : start + fitting] for start in range(0, len(order), fitting)]
    free: queue.Queue[int] = queue.Queue()
    ready: queue.Queue[tuple[UInt8, list[int]] | Exception] = queue.Queue()
    ended = threading.Event()
    for slot in range(SLOTS):
        free.put(slot)

    def cut() -> None:
        try:
            for rows in parts:
                slot = free.get()
                if ended.is_set():
                    return
                places = [(x, y) for x, y in corners[rows].tolist()]
                ready.put(source.cut(slot, places, level, spans, (side, side)))
        except Exception as error:  # the caller raises it
            ready.put(error)

    thread = threading.Thread(target=cut, name="patches", daemon=True)
    thread.start()
    try:
        for number, rows in enumerate(parts):
            answer = ready.get()
            if isinstance(answer, Exception):
                raise answer
            images, damaged = answer
            kept = np.delete(np.arange(len(rows)), damaged)
            yield PatchBatch(
                rows[kept], images if not damaged else images[kept], len(rows) - len(kept)
            )
            free.put(number % SLOTS)
    finally:
        ended.set()
        free.put(0)
        thread.join()


def tile_order(slide: Slide, corners: Int64, level: int) -> Int64:
    """Order patches by the tiles of a level that their corners lie in, row by row.

    Patches that reach into the next row of tiles find it again in the reader's cache.

    Returns:
        int64 (n,), places in `corners`.
    """
    width, height = slide.tile_size(level) or (_NO_TILES, _NO_TILES)
    scale = slide.source.level_downsamples[level]
    x, y = corners[:, 0], corners[:, 1]
    columns, rows = (x / (scale * width)).astype(int), (y / (scale * height)).astype(int)
    return np.lexsort((x, y, columns, rows)).astype(np.int64)


def _one_by_one(
    slide: Slide, corners: Int64, side: int, mpp: float, at_once: int
) -> Iterator[PatchBatch]:
    for start in range(0, len(corners), at_once):
        images, kept = [], []
        part = corners[start : start + at_once]
        for place, (x, y) in enumerate(part.tolist()):
            try:
                images.append(slide.read(x, y, (side, side), mpp))
            except DamagedError:
                continue
            kept.append(start + place)
        empty = np.zeros((0, side, side, 3), np.uint8)
        yield PatchBatch(
            np.array(kept, np.int64), np.stack(images) if images else empty, len(part) - len(kept)
        )
