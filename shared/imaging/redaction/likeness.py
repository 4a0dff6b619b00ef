"""Whether the levels of a slide show one picture: a label that is stored as a level does not.

Each level is compared with the next finer one, in windows spread over it. What is broad must have
the same colours, and what is fine must go up and down together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import openslide

from shared.arrays import Float32, UInt8
from shared.errors import InputError
from shared.imaging.sandboxed_slide import open_source

GRID, SIDE, LONGEST = 8, 64, 1024
"""Most windows along each side of a level, pixels of their sides, and of those in the finer one."""

CELL, BROAD = 4, 5
"""Pixels of the cells that are compared, and cells of what is broad: programs scale differently."""

MAX_DIFFERENCE, MAX_SHARE = 24, 0.02
"""Largest difference of a broad colour, 0 to 255, and share of the cells that may differ more."""

MIN_CONTRAST, MIN_CORRELATION = 2, 0.4
"""Contrast above noise, grey levels, and correlation that it needs; chance gives less."""

MIN_READABLE = 0.5
"""Share of the windows that must be readable."""


def check_alike(path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise `InputError` if the levels that are read are not one picture.

    Args:
        path: the file.
        sizes: width and height of each image that is taken for a level, pixels.
    """
    try:
        source = open_source(path)
    except InputError as error:
        raise InputError(f"its levels cannot be compared: {error}") from error
    with closing(source):
        if set(source.level_dimensions) != set(sizes):
            raise InputError("its levels are not those that are read: one may be its label")
        for level in range(1, source.level_count):
            if not _alike(source, level):
                width, height = source.level_dimensions[level]
                raise InputError(
                    f"its image of {width}×{height} px is not its main image made smaller: it may "
                    "be its label"
                )


def _alike(source: openslide.AbstractSlide, level: int) -> bool:
    broad, fine, coarse_fine = [], [], []
    corners = list(_corners(source, level))
    for one, other, seen in _pairs(source, level, corners):
        cells, finer = _cells(one), _cells(other)
        kept = _cells(seen.astype(np.float32)) > 254
        low, finer_low = cv2.blur(cells, (BROAD, BROAD)), cv2.blur(finer, (BROAD, BROAD))
        broad.append(np.abs(low - finer_low).max(-1)[kept])
        coarse_fine.append((cells - low)[kept].ravel())
        fine.append((finer - finer_low)[kept].ravel())
    if len(broad) < MIN_READABLE * len(corners):
        return False
    if (np.concatenate(broad) > MAX_DIFFERENCE).mean() > MAX_SHARE:
        return False
    one, other = np.concatenate(coarse_fine), np.concatenate(fine)
    contrast = np.sqrt([np.mean(one**2), np.mean(other**2)])
    if contrast.max() <= MIN_CONTRAST:
        return True
    return bool(np.mean(one * other) >= MIN_CORRELATION * contrast.prod())


def _corners(source: openslide.AbstractSlide, level: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield x, y, width and height of the windows, pixels of the level."""
    width, height = source.level_dimensions[level]
    scale = source.level_downsamples[level] / source.level_downsamples[level - 1]
    side = max(CELL, min(SIDE, int(LONGEST / scale)))
    wide, high = min(side, width), min(side, height)
    for y in np.linspace(0, height - high, min(GRID, -(-height // side))).astype(int):
        for x in np.linspace(0, width - wide, min(GRID, -(-width // side))).astype(int):
            yield int(x), int(y), wide, high


def _pairs(
    source: openslide.AbstractSlide, level: int, corners: Sequence[tuple[int, int, int, int]]
) -> Iterator[tuple[UInt8, UInt8, UInt8]]:
    """Yield windows of a level, the same of the finer one in its size, and where both have pixels.

    Windows in damaged places are passed over.
    """
    own, finer = source.level_downsamples[level], source.level_downsamples[level - 1]
    for x, y, width, height in corners:
        at = round(x * own), round(y * own)
        size = max(1, round(width * own / finer)), max(1, round(height * own / finer))
        try:
            one = np.asarray(source.read_region(at, level, (width, height)))
            large = np.asarray(source.read_region(at, level - 1, size))
        except openslide.OpenSlideError:
            continue
        other = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
        seen = np.minimum(one[..., 3], other[..., 3]).astype(np.uint8)
        yield one[..., :3], other[..., :3].astype(np.uint8), seen


def _cells(image: UInt8 | Float32) -> Float32:
    height, width = image.shape[:2]
    size = max(1, width // CELL), max(1, height // CELL)
    cells = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(cells, np.float32)
