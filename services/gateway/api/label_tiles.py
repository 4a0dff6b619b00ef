"""A cache of open label maps, from which tiles are cut that lie over those of a slide."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from fastapi import Request

from services.gateway.api.zoom import TILE_SIDE, Zoom
from shared.arrays import Int64, UInt8
from shared.contracts.base import Classes, class_color
from shared.imaging.codec import encode_palette_png
from shared.imaging.label_map import LABEL_TILE, LabelMap
from shared.imaging.marks import mark_png
from shared.imaging.stored_slides import open_label_map
from shared.storage import Store, sha256

MAX_OPEN = 16
"""Number of label maps that stay open."""

COARSE_FACTOR = 16
"""Coarser label tiles are cut from a copy that is smaller by this, as label maps have one level."""


class LabelTiles:
    """An open label map that tiles are cut from; it is closed when it is garbage-collected.

    Attributes:
        version: text that changes with the map, for the ETags of its tiles.
    """

    def __init__(self, labels: LabelMap, version: str) -> None:
        weakref.finalize(self, labels.__exit__)
        self.version = version
        self._labels = labels
        self._small: UInt8 | None = None
        self._lock = threading.Lock()

    def tile(self, zoom: Zoom, level: int, column: int, row: int, classes: Classes | None) -> bytes:
        """Return the labels over a zoom tile as PNG; label 0 is transparent.

        It has the mark of a synthetic slide, as label maps of datasets have.

        Args:
            zoom: the slide of the label map.
            level: Deep Zoom level of the tile.
            column: column of the tile.
            row: row of the tile.
            classes: classes that give the colours; None: the default colours.

        Raises:
            ProblemError: there is no such tile (404).
        """
        centres = zoom.centres(level, column, row)
        # The label map has its own resolution, which may differ between x and y.
        size = (self._labels.width, self._labels.height)
        xs, ys = (
            (at * count / whole).astype(int).clip(0, count - 1)
            for at, count, whole in zip(centres, size, zoom.slide.dimensions, strict=True)
        )
        colors = classes.colors if classes else [class_color(index) for index in range(256)]
        png = colored(self._at(xs, ys), colors)
        return mark_png(png, zoom.slide.mark) if zoom.slide.mark else png

    def _at(self, xs: Int64, ys: Int64) -> UInt8:
        with self._lock:
            if (
                xs[-1] - xs[0] > COARSE_FACTOR * TILE_SIDE
                or ys[-1] - ys[0] > COARSE_FACTOR * TILE_SIDE
            ):
                if self._small is None:
                    self._small = _shrink(self._labels)
                return self._small[np.ix_(ys // COARSE_FACTOR, xs // COARSE_FACTOR)]
            spans = (int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
            part = self._labels.window(int(xs[0]), int(ys[0]), *spans)
            return part[np.ix_(ys - ys[0], xs - xs[0])]


def colored(labels: UInt8, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode labels, uint8 (height, width), as PNG in `colors`; label 0 is transparent."""
    return encode_palette_png(labels, colors, transparent=0)


def _shrink(labels: LabelMap) -> UInt8:
    """Return every `COARSE_FACTOR`th pixel of a label map, which is read strip by strip."""
    every = slice(None, None, COARSE_FACTOR)
    strips = (
        labels.window(0, y, labels.width, min(LABEL_TILE, labels.height - y))[every, every]
        for y in range(0, labels.height, LABEL_TILE)
    )
    return np.concatenate(list(strips))


class LabelMaps:
    """The cache of open label maps; it drops the least recently used one first."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, LabelTiles] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, store: Store, key: str, digest: str | None) -> LabelTiles:
        """Return a label map from the cache; open and check it first if it is new or replaced.

        Args:
            store: holds the label map.
            key: its key.
            digest: its SHA-256; None: it is not known.

        Raises:
            ObjectNotFoundError: the store holds no such object.
            DamagedObjectError: it is not as it was made.
        """
        identity = f"{store.url} {key} {store.stat(key).tag} {digest}"
        with self._lock:
            found = self._open.get(identity)
        if found is None:
            labels = open_label_map(store, key, digest)
            found = LabelTiles(labels, sha256(identity.encode())[:24])
        with self._lock:
            self._open[identity] = found
            self._open.move_to_end(identity)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return found


def label_tiles(request: Request, store: Store, key: str, digest: str | None) -> LabelTiles:
    """Return a label map from the application's cache; see `LabelMaps.get`."""
    maps: LabelMaps = request.app.state.label_maps
    return maps.get(store, key, digest)
