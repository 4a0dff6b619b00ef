"""A cache of open slides, from which zoom tiles, label tiles and crops are cut."""

from __future__ import annotations

import io
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, NamedTuple

import numpy as np
import openslide
from fastapi import Path, Request
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from services.gateway.api.access import Caller
from services.gateway.api.problems import ProblemError
from services.gateway.api.slide_lookup import find_slide, label_map, source_of
from shared.arrays import Float64, Int64, UInt8
from shared.contracts.base import Classes, class_color
from shared.contracts.field import FieldRecord, field_key
from shared.errors import InputError
from shared.imaging.codec import encode_palette_png, encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap
from shared.imaging.marks import mark_png, mark_xmp
from shared.imaging.ranged_slide import open_ranged
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import WINDOW_PIXELS, Slide
from shared.imaging.stored_slides import local_source, open_label_map
from shared.storage import ObjectNotFoundError, Store, sha256

TILE_SIDE, TILE_OVERLAP = 254, 1
JPEG_QUALITY = 80

MAX_OPEN = 16
"""Number of slides that stay open, because opening a slide takes longer than cutting a tile."""

FRESH_SECONDS = 10.0
"""Seconds after which the files of an open slide are compared with the store again."""

MAX_LOSSES = 3
"""How often a slide may end the process that reads it, before it is refused."""

REFUSED_SECONDS, MAX_REFUSED = 600.0, 4096
"""Time that a slide stays refused which cannot be opened or ends its process, unless its files
change; and how many such slides are remembered."""

MAX_CROP_SPAN = 4096
"""Largest side of a crop in level-0 pixels, all of which are read if the slide has one level."""

MAX_TILE_SPAN = 1 << 28
"""Largest area of a tile in pixels of the level that it is cut from; it takes a few seconds."""

COARSE_FACTOR = 16
"""Coarser label tiles are cut from a copy that is smaller by this, as label maps have one level."""

Level = Annotated[int, Path(ge=0, le=64)]
TileNumber = Annotated[int, Path(ge=0, le=2**31)]


class Zoom:
    """An open slide that zoom tiles are cut from; it is closed when it is garbage-collected.

    Args:
        store: holds the slide.
        source: key or path of the slide's file.
        labels: key of the slide's label map; None: the slide has no label map.

    Attributes:
        path: local path of the slide's file; its key if tiles are fetched one by one.
        slide: the file, opened in the sandbox.
        tiles: Deep Zoom layout of the slide's tiles.
        labels: the slide's label map; None: the slide has no label map.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, store: Store, source: str, labels: str | None) -> None:
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        ranged = open_ranged(store, source)
        if ranged is None:
            self.path = stack.enter_context(local_source(store, source))
            self.slide = stack.enter_context(open_source(self.path))
        else:
            self.path, self.slide = FilePath(source), stack.enter_context(ranged)
        self.tiles = DeepZoomGenerator(self.slide, TILE_SIDE, TILE_OVERLAP, limit_bounds=False)
        self.labels: LabelMap | None = None
        if labels is not None:
            self.labels = stack.enter_context(open_label_map(store, labels))
        self._small: UInt8 | None = None
        self._lock = threading.Lock()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return a zoom tile as JPEG, with the slide's mark if it is synthetic.

        Raises:
            ProblemError: there is no such tile (404).
            InputError: the slide's file is damaged at this tile.
        """
        self._check(level, column, row)
        body = io.BytesIO()
        at = (column, row)
        corner, _, spans = self.tiles.get_tile_coordinates(level, at)
        try:
            if spans[0] * spans[1] > MAX_TILE_SPAN:
                raise InputError(
                    f"this tile takes {spans[0]}×{spans[1]} px of the slide, whose levels are not "
                    "coarse enough to show it whole: make it a pyramidal TIFF first "
                    "(vips tiffsave --tile --pyramid)"
                )
            if spans[0] * spans[1] > WINDOW_PIXELS:  # no level is coarse enough: read in blocks
                shrink = 2.0 ** (self.tiles.level_count - 1 - level)
                size = self.tiles.get_tile_dimensions(level, at)
                tile = Image.fromarray(Slide(self.path, self.slide, 1).read(*corner, size, shrink))
            else:
                tile = self.tiles.get_tile(level, at)
        except openslide.OpenSlideError as error:
            raise InputError(f"the slide's file is damaged here: {error}") from error
        xmp = mark_xmp(self.slide.mark) if self.slide.mark else b""
        tile.save(body, "JPEG", quality=JPEG_QUALITY, xmp=xmp)
        return body.getvalue()

    def crop(
        self, corner: tuple[int, int], side: int, mpp: float, slide_mpp: tuple[float, float]
    ) -> bytes:
        """Return a square of the slide as PNG, with the slide's mark if it is synthetic.

        Args:
            corner: x and y of the upper left corner in level-0 pixels.
            side: side of the square in pixels of `mpp`.
            mpp: µm per pixel of the square.
            slide_mpp: µm per level-0 pixel, along x and y.

        Raises:
            InputError: the square does not lie on the slide, spans more than `MAX_CROP_SPAN`
                level-0 pixels, or is finer than the slide.
        """
        slide = Slide(self.path, self.slide, *slide_mpp)
        spans = [round(side * mpp / own) for own in (slide.mpp, slide.mpp_y)]
        size = (slide.width, slide.height)
        if any(at + span > whole for at, span, whole in zip(corner, spans, size, strict=True)):
            raise InputError(
                f"{spans[0]}×{spans[1]} px at {corner} do not lie on the slide, which has "
                f"{slide.width}×{slide.height} px"
            )
        if max(spans) > MAX_CROP_SPAN:
            raise InputError(
                f"the square spans {max(spans)} px of the slide, but at most {MAX_CROP_SPAN} are "
                "allowed: ask for a smaller side, or fewer µm per pixel"
            )
        return self._marked(encode_png(slide.read(*corner, (side, side), mpp)))

    def label_tile(self, level: int, column: int, row: int, classes: Classes | None) -> bytes:
        """Return a zoom tile of the label map as PNG; label 0 is transparent.

        It has the mark of a synthetic slide, as label maps of datasets have.

        Args:
            level: Deep Zoom level of the tile.
            column: column of the tile.
            row: row of the tile.
            classes: classes that give the colours; None: the default colours.

        Raises:
            ProblemError: there is no such tile, or no label map (404).
        """
        centres = self.centres(level, column, row)
        if self.labels is None:
            raise ProblemError(404, "no-labels", "the slide has no label map")
        # The label map has its own resolution, which may differ between x and y.
        size = (self.labels.width, self.labels.height)
        xs, ys = (
            (at * count / whole).astype(int).clip(0, count - 1)
            for at, count, whole in zip(centres, size, self.slide.dimensions, strict=True)
        )
        colors = classes.colors if classes else [class_color(index) for index in range(256)]
        return self._marked(colored(self._labels_at(xs, ys), colors))

    def centres(self, level: int, column: int, row: int) -> tuple[Float64, Float64]:
        """Return the pixel centres of a tile in level-0 pixels: x (width,) and y (height,).

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
                    self._small = _shrink(self.labels)
                return self._small[np.ix_(ys // COARSE_FACTOR, xs // COARSE_FACTOR)]
            spans = (int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
            part = self.labels.window(int(xs[0]), int(ys[0]), *spans)
            return part[np.ix_(ys - ys[0], xs - xs[0])]

    def _marked(self, png: bytes) -> bytes:
        return mark_png(png, self.slide.mark) if self.slide.mark else png

    def _check(self, level: int, column: int, row: int) -> None:
        if level < self.tiles.level_count:
            columns, rows = self.tiles.level_tiles[level]
            if column < columns and row < rows:
                return
        raise ProblemError(
            404,
            "no-tile",
            f"there is no tile {column}_{row} at level {level}",
            remedy="deepzoom.dzi states the size of the slide",
        )


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


class Files(NamedTuple):
    """The keys of a slide's file and label map, and a version that changes with them."""

    source: str
    labels: str | None
    version: str


@dataclass
class _Slot:
    """A cache entry for an open slide; a thread that opens the slide holds the entry's lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    zoom: Zoom | None = None
    version: str = ""
    checked: float = 0.0


@dataclass
class _Bad:
    """What is known against a version of a slide: losses of its process, and why it is refused."""

    losses: int = 0
    error: str | None = None
    at: float = 0.0

    def refuse(self, error: str) -> None:
        self.error, self.at = error, time.monotonic()

    def open(self, store: Store, source: str, labels: str | None) -> Zoom:
        """Open the slide. Raises `InputError`, also without a try where the last one failed."""
        if self.error is not None:
            raise InputError(self.error)
        try:
            return Zoom(store, source, labels)
        except ObjectNotFoundError:
            raise
        except InputError as error:
            self.refuse(str(error))
            raise


class Zooms:
    """The cache of open slides; it drops the least recently used slide first."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()
        self._bad: OrderedDict[tuple[str, str, str], _Bad] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, store: Store, slide: str, find: Callable[[], Files]) -> tuple[Zoom, str]:
        """Return a slide from the cache; open it first if it is missing or its files have changed.

        Args:
            store: holds the slide.
            slide: its name.
            find: finds its files.

        Returns:
            The open slide, and its version for the ETags of its tiles.

        Raises:
            InputError: the slide's file cannot be opened.
        """
        key = (store.url, slide)
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > MAX_OPEN:
                self._slots.popitem(last=False)
        with slot.lock:  # other slides do not wait while this slide is fetched
            now = time.monotonic()
            if slot.zoom is None or slot.zoom.slide.failed or now - slot.checked > FRESH_SECONDS:
                source, labels, version = find()
                lost = slot.zoom is not None and slot.zoom.slide.failed
                if slot.zoom is None or lost or version != slot.version:
                    bad = self._record_of((*key, version), lost and version == slot.version)
                    slot.zoom, slot.version = bad.open(store, source, labels), version
                slot.checked = now
            return slot.zoom, slot.version

    def _record_of(self, key: tuple[str, str, str], lost: bool) -> _Bad:
        """Return what is known against a version of a slide, with one loss more if it was lost."""
        with self._lock:
            bad = self._bad.pop(key, None) or _Bad()
            if bad.error is not None and time.monotonic() - bad.at > REFUSED_SECONDS:
                bad = _Bad()
            self._bad[key] = bad
            while len(self._bad) > MAX_REFUSED:
                self._bad.popitem(last=False)
        bad.losses += lost
        if bad.losses >= MAX_LOSSES and bad.error is None:
            bad.refuse(
                f"slide {key[1]!r} ended the process that reads it {bad.losses} times: it is "
                "damaged, or takes too long. Replace its file, or try again in ten minutes"
            )
        return bad


def _find_files(caller: Caller, slide: str) -> Files:
    """Find a slide's files. Raises `ProblemError` if there is no slide, or no file (404)."""
    info = find_slide(caller, slide)
    source = source_of(caller.store, info)
    if source is None:
        raise ProblemError(404, "no-source", f"slide {slide!r} has no file")
    labels = label_map(info, None)
    # A source that is not among the slide's files may be a path outside of the store.
    keys = [key for key in info.files if key == source] + ([labels] if labels else [])
    tags = [caller.store.stat(key).tag for key in keys]
    version = sha256(f"{info.model_dump_json()} {tags}".encode())[:24]
    return Files(source, labels, version)


def zoom_of(request: Request, caller: Caller, slide: str) -> tuple[Zoom, str]:
    """Return an open slide and its version from the application's cache; see `Zooms.get`.

    Raises `ProblemError` too: there is no such slide, or it has no file (404).
    """
    zooms: Zooms = request.app.state.zooms
    return zooms.get(caller.store, slide, partial(_find_files, caller, slide))


def zoom_of_field(request: Request, caller: Caller, field: str) -> tuple[Zoom, FieldRecord, str]:
    """Return a finished field, its record and its version, like `zoom_of`.

    Raises `ObjectNotFoundError` if there is no such field, or it is not finished.
    """
    record = caller.store.get_model(field_key(field, "field.json"), FieldRecord)
    version = sha256(f"{record.sha256}".encode())[:24]
    keys = [field_key(field, name) for name in ("slide.tiff", "labels.tiff")]
    zooms: Zooms = request.app.state.zooms
    zoom, version = zooms.get(
        caller.store, f"fields/{field}", partial(Files, keys[0], keys[1], version)
    )
    return zoom, record, version
