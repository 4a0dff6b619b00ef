"""Open slides, kept for their zoom tiles, label tiles and crops."""

from __future__ import annotations

import io
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import openslide
from fastapi import Path, Request
from openslide.deepzoom import DeepZoomGenerator

from services.gateway.api.access import Caller
from services.gateway.api.problems import ProblemError
from services.gateway.api.slide_lookup import find_slide
from shared.arrays import Float64, Int64, UInt8
from shared.contracts.base import Classes, class_color
from shared.contracts.ingest import slide_key
from shared.errors import InputError
from shared.imaging.codec import encode_palette_png, encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap
from shared.imaging.slide import Slide, local_source, open_source
from shared.storage import ObjectStore, sha256

TILE_SIDE, TILE_OVERLAP = 254, 1
JPEG_QUALITY = 80

MAX_OPEN = 16
"""Slides held open, because opening one takes longer than cutting a tile."""

FRESH_SECONDS = 10.0
"""Seconds after which the files of an open slide are compared with the store again."""

MAX_CROP_SPAN = 4096
"""Side of a crop in level-0 pixels: a slide without other levels is read in all of them."""

COARSE_FACTOR = 16
"""Label maps have one level; tiles coarser than this are cut from a smaller copy."""

Level = Annotated[int, Path(ge=0, le=64)]
TileNumber = Annotated[int, Path(ge=0, le=2**31)]


class Zoom:
    """An open slide that zoom tiles are cut from; it closes when nobody refers to it any more.

    Args:
        store: holds the slide.
        source: key or path of the slide's file.
        labels: key of its label map, if it has one.

    Attributes:
        path: local path of the slide's file.
        slide: the file, opened by OpenSlide.
        tiles: the layout of its zoom tiles.
        labels: its label map, if it has one.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, store: ObjectStore, source: str, labels: str | None) -> None:
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        self.path = stack.enter_context(local_source(store, source))
        self.slide = stack.enter_context(open_source(self.path))
        self.tiles = DeepZoomGenerator(self.slide, TILE_SIDE, TILE_OVERLAP, limit_bounds=False)
        self.labels: LabelMap | None = None
        if labels is not None:
            self.labels = stack.enter_context(LabelMap(store.local(labels)))
        self._small: UInt8 | None = None
        self._lock = threading.Lock()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Cut a zoom tile, JPEG.

        Raises:
            ProblemError: there is no such tile (404).
            InputError: the file is damaged there.
        """
        self._check(level, column, row)
        body = io.BytesIO()
        try:
            tile = self.tiles.get_tile(level, (column, row))
        except openslide.OpenSlideError as error:
            raise InputError(f"the slide's file is damaged here: {error}") from error
        tile.save(body, "JPEG", quality=JPEG_QUALITY)
        return body.getvalue()

    def crop(self, corner: tuple[int, int], side: int, mpp: float, stated: float) -> bytes:
        """Cut a square out of the slide, PNG.

        Args:
            corner: x and y in level-0 pixels.
            side: in pixels at `mpp`.
            mpp: µm per pixel of the square.
            stated: µm per level-0 pixel, for files that state none.

        Raises:
            InputError: the square does not lie on the slide, spans too much of it, or is finer than
                the slide.
        """
        slide = Slide(self.path, self.slide, stated)
        spans = [round(side * mpp / own) for own in (slide.mpp, slide.mpp_y)]
        size = (slide.width, slide.height)
        if any(at + span > whole for at, span, whole in zip(corner, spans, size, strict=True)):
            raise InputError(
                f"{spans[0]}×{spans[1]} px at {corner} do not lie on the slide, which has "
                f"{slide.width}×{slide.height} px"
            )
        if max(spans) > MAX_CROP_SPAN:
            raise InputError(
                f"the square spans {max(spans)} px of the slide, and at most {MAX_CROP_SPAN} are "
                "read: ask for a smaller side, or fewer µm per pixel"
            )
        return encode_png(slide.read(*corner, (side, side), mpp))

    def label_tile(self, level: int, column: int, row: int, classes: Classes | None) -> bytes:
        """Cut a zoom tile of the label map, PNG; label 0 is transparent.

        Raises:
            ProblemError: there is no such tile, or no label map (404).
        """
        centres = self.centres(level, column, row)
        if self.labels is None:
            raise ProblemError(404, "no-labels", "the slide has no label map")
        # Level-0 pixels of the slide per pixel of the label map, which may differ each way.
        size = (self.labels.width, self.labels.height)
        xs, ys = (
            (at * count / whole).astype(int).clip(0, count - 1)
            for at, count, whole in zip(centres, size, self.slide.dimensions, strict=True)
        )
        colors = classes.colors if classes else [class_color(index) for index in range(256)]
        return colored(self._labels_at(xs, ys), colors)

    def centres(self, level: int, column: int, row: int) -> tuple[Float64, Float64]:
        """Return the centres of the pixels of a tile: x (width,), y (height,) in level-0 pixels.

        Raises:
            ProblemError: there is no such tile (404).
        """
        self._check(level, column, row)
        corner = self.tiles.get_tile_coordinates(level, (column, row))[0]
        width, height = self.tiles.get_tile_dimensions(level, (column, row))
        shrink = 2 ** (self.tiles.level_count - 1 - level)
        xs, ys = (
            start + (np.arange(count) + 0.5) * shrink
            for start, count in zip(corner, (width, height), strict=True)
        )
        return xs, ys

    def _labels_at(self, xs: Int64, ys: Int64) -> UInt8:
        if self.labels is None:
            raise ValueError("no label map")
        with self._lock:
            if (
                xs[-1] - xs[0] > COARSE_FACTOR * TILE_SIDE
                or ys[-1] - ys[0] > COARSE_FACTOR * TILE_SIDE
            ):
                if self._small is None:
                    self._small = _shrunk(self.labels)
                return self._small[np.ix_(ys // COARSE_FACTOR, xs // COARSE_FACTOR)]
            spans = (int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
            part = self.labels.window(int(xs[0]), int(ys[0]), *spans)
            return part[np.ix_(ys - ys[0], xs - xs[0])]

    def _check(self, level: int, column: int, row: int) -> None:
        if level < self.tiles.level_count:
            columns, rows = self.tiles.level_tiles[level]
            if column < columns and row < rows:
                return
        raise ProblemError(
            404,
            "no-tile",
            f"there is no tile {column}_{row} at level {level}",
            remedy="deepzoom.dzi says how large the slide is",
        )


def colored(labels: UInt8, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode labels, uint8 (height, width), as a PNG in the colours; label 0 is transparent."""
    return encode_palette_png(labels, colors, transparent=0)


def _shrunk(labels: LabelMap) -> UInt8:
    """Take every `COARSE_FACTOR`th pixel of a label map, strip by strip."""
    every = slice(None, None, COARSE_FACTOR)
    strips = (
        labels.window(0, y, labels.width, min(LABEL_TILE, labels.height - y))[every, every]
        for y in range(0, labels.height, LABEL_TILE)
    )
    return np.concatenate(list(strips))


@dataclass
class _Slot:
    """A place for an open slide; its lock is held while a thread opens the slide."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    zoom: Zoom | None = None
    version: str = ""
    checked: float = 0.0


class Zooms:
    """The slides that are held open; the least recently used one is dropped first."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, caller: Caller, slide: str) -> tuple[Zoom, str]:
        """Return an open slide; open it if it is not, or if its files have changed.

        Returns:
            The slide, and its version, which is a part of the ETags of its tiles.

        Raises:
            ProblemError: there is no such slide, or no file of it (404).
            InputError: its file cannot be opened.
        """
        key = (caller.store.url, slide)
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > MAX_OPEN:
                self._slots.popitem(last=False)
        with slot.lock:  # other slides need not wait while this one is fetched
            now = time.monotonic()
            if slot.zoom is None or now - slot.checked > FRESH_SECONDS:
                source, labels, version = _current(caller, slide)
                if slot.zoom is None or version != slot.version:
                    slot.zoom, slot.version = Zoom(caller.store, source, labels), version
                slot.checked = now
            return slot.zoom, slot.version


def _current(caller: Caller, slide: str) -> tuple[str, str | None, str]:
    """Return the keys of a slide's file and label map, and a hash of their current content."""
    info = find_slide(caller, slide)
    if info.source is None:
        raise ProblemError(404, "no-source", f"slide {slide!r} has no file")
    labels = slide_key(slide, "labels.tif")
    mapped = caller.store.exists(labels)
    # A source that is not among the slide's files may be a path outside of the store.
    keys = [key for key in info.files if key == info.source] + [labels] * mapped
    tags = [caller.store.stat(key).tag for key in keys]
    version = sha256(f"{info.model_dump_json()} {tags}".encode())[:24]
    return info.source, labels if mapped else None, version


def zoom_of(request: Request, caller: Caller, slide: str) -> tuple[Zoom, str]:
    """Return an open slide and its version, as `Zooms.get`."""
    zooms: Zooms = request.app.state.zooms
    return zooms.get(caller, slide)
