"""Cutting many patches of a slide at once, inside the sandbox: each tile is decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import openslide

from shared.arrays import UInt8
from shared.imaging.jpeg_tiles import JpegTiles

MAX_THREADS = 8
"""Largest number of threads that decode a slide's tiles."""

OPENSLIDE_CACHE = 256 << 20
"""Bytes of decoded tiles that OpenSlide keeps, where it reads the patches."""

Corner = tuple[int, int]
T = TypeVar("T")


class PatchCutter:
    """Cuts patches out of a slide: by JPEG tiles where it has such, else by OpenSlide's interface.

    Args:
        path: the file.
        source: the open slide.
    """

    def __init__(self, path: Path, source: openslide.AbstractSlide) -> None:
        self._source = source
        self._tiles = JpegTiles(path, source)
        self._pool = ThreadPoolExecutor(_threads())
        if isinstance(source, openslide.OpenSlide):  # noqa: TID251 - in the sandbox
            source.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE))

    def cut(
        self, corners: Sequence[Corner], level: int, spans: tuple[int, int], out: UInt8
    ) -> list[int]:
        """Cut patches; what is outside of the slide is white.

        Args:
            corners: x and y of each upper left corner, level-0 pixels.
            level: level that they are cut from.
            spans: width and height of a patch, pixels of the level.
            out: uint8 RGB (n, height, width, 3), which is filled; patches of another size than
                `spans` are averaged.

        Returns:
            The places in `corners` of patches that cannot be read.
        """
        size = (out.shape[2], out.shape[1])
        if level in self._tiles.levels:
            scale = self._source.level_downsamples[level]
            self._tiles.drop_above(level, min((y for _, y in corners), default=0) / scale)
        failed: list[int] = []

        def cut(place: int) -> None:
            try:
                if size == spans:
                    self._read(corners[place], level, out[place])
                else:
                    whole = np.empty((spans[1], spans[0], 3), np.uint8)
                    self._read(corners[place], level, whole)
                    cv2.resize(whole, size, out[place], interpolation=cv2.INTER_AREA)
            except openslide.OpenSlideError:
                failed.append(place)

        self._each(cut, range(len(corners)))
        # OpenSlide's handles fail for ever after their first error, so the threads that met a
        # broken one know nothing about their own patches.
        suspects, failed = sorted(failed), []
        for place in suspects:
            cut(place)
        return failed

    def _read(self, corner: Corner, level: int, out: UInt8) -> None:
        """Fill a window from its corner on. Raises `OpenSlideError`."""
        if level in self._tiles.levels:
            scale = self._source.level_downsamples[level]
            try:
                self._tiles.read(level, corner[0] / scale, corner[1] / scale, out)
                return
            except ValueError:
                pass  # OpenSlide may know better
        size = (out.shape[1], out.shape[0])
        out[:] = on_white(np.asarray(self._source.read_region(corner, level, size)))

    def _each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        """Call a function with each item, in threads; whoever is free takes the next one."""
        rest = iter(items)

        def some(_: int) -> None:
            for item in rest:
                do(item)

        list(self._pool.map(some, range(_threads())))


def on_white(rgba: UInt8) -> UInt8:
    """Compose RGBA, uint8 (height, width, 4), on white, as Pillow does: RGB."""
    alpha = rgba[..., 3:]
    if (alpha == 255).all():
        return rgba[..., :3]
    mixed = rgba[..., :3].astype(np.uint32) * alpha + 255 * (255 - alpha.astype(np.uint32)) + 128
    return (((mixed >> 8) + mixed) >> 8).astype(np.uint8)


def _threads() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, cpus)
