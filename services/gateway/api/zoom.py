"""A cache of open slides, from which zoom tiles and crops are cut."""

from __future__ import annotations

import io
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
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
from services.gateway.api.slide_lookup import find_slide, source_of
from services.gateway.api.streams import check_whole
from shared.arrays import Float64
from shared.contracts.field import FieldRecord, field_key
from shared.contracts.ingest import SlideRecord
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.marks import mark_png, mark_xmp
from shared.imaging.ranged_slide import open_ranged
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import WINDOW_PIXELS, Slide
from shared.imaging.stored_slides import local_source, slide_hash
from shared.storage import ObjectNotFoundError, Store, object_hash, sha256

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

Level = Annotated[int, Path(ge=0, le=64)]
TileNumber = Annotated[int, Path(ge=0, le=2**31)]


class Zoom:
    """An open slide that zoom tiles are cut from; it is closed when it is garbage-collected.

    Args:
        store: holds the slide.
        source: key or path of the slide's file.
        record: what ingest has found out about the slide; None: it has not been ingested.

    Attributes:
        path: local path of the slide's file; its key if tiles are fetched one by one.
        slide: the file, opened in the sandbox.
        tiles: Deep Zoom layout of the slide's tiles.
        record: as given.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, store: Store, source: str, record: SlideRecord | None) -> None:
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        self.record = record
        ranged = open_ranged(store, source)
        self._ranged = ranged is not None
        if ranged is None:
            self.path = stack.enter_context(local_source(store, source))
            self.slide = stack.enter_context(open_source(self.path))
        else:
            self.path, self.slide = FilePath(source), stack.enter_context(ranged)
        self.tiles = DeepZoomGenerator(self.slide, TILE_SIDE, TILE_OVERLAP, limit_bounds=False)
        self._compared = -math.inf
        self._lock = threading.Lock()

    def is_as_ingested(self, store: Store) -> bool:
        """Say whether the slide's files have the content that ingest has read.

        They are compared again after `FRESH_SECONDS`; those that have not changed are read once.
        """
        if self.record is None:
            return False
        with self._lock:
            if time.monotonic() - self._compared > FRESH_SECONDS:
                try:
                    if self._ranged:
                        found = object_hash(store, str(self.path))
                    else:
                        found = slide_hash(self.path, self.record.parts)
                except OSError:  # a file is missing
                    return False
                if found != self.record.sha256:
                    return False
                self._compared = time.monotonic()
        return True

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


class Files(NamedTuple):
    """A slide's main file, what ingest has found out about it, and a version of both."""

    source: str
    record: SlideRecord | None
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

    def open(self, store: Store, source: str, record: SlideRecord | None) -> Zoom:
        """Open the slide. Raises `InputError`, also without a try where the last one failed."""
        if self.error is not None:
            raise InputError(self.error)
        try:
            return Zoom(store, source, record)
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

    def get(
        self, store: Store, slide: str, find: Callable[[], Files], *, again: bool = False
    ) -> tuple[Zoom, str]:
        """Return a slide from the cache; open it first if it is missing or its files have changed.

        Args:
            store: holds the slide.
            slide: its name.
            find: finds its files.
            again: look for changes now, however fresh the slide is.

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
            stale = again or now - slot.checked > FRESH_SECONDS
            if slot.zoom is None or slot.zoom.slide.failed or stale:
                source, record, version = find()
                lost = slot.zoom is not None and slot.zoom.slide.failed
                if slot.zoom is None or lost or version != slot.version:
                    bad = self._record_of((*key, version), lost and version == slot.version)
                    slot.zoom, slot.version = bad.open(store, source, record), version
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
    # A source that is not among the slide's files may be a path outside of the store.
    tags = [caller.store.stat(key).tag for key in info.files if key == source]
    version = sha256(f"{info.model_dump_json()} {tags}".encode())[:24]
    return Files(source, info.record, version)


def zoom_of(
    request: Request, caller: Caller, slide: str, *, again: bool = False
) -> tuple[Zoom, str]:
    """Return an open slide and its version from the application's cache; see `Zooms.get`.

    Raises `ProblemError` too: there is no such slide, or it has no file (404).
    """
    zooms: Zooms = request.app.state.zooms
    return zooms.get(caller.store, slide, partial(_find_files, caller, slide), again=again)


def zoom_as_ingested(
    request: Request, caller: Caller, slide: str, content: str | None = None
) -> tuple[Zoom, SlideRecord, str]:
    """Return an open slide, its record and its version, like `zoom_of`.

    What ingest has found, such as the scale, a tissue mask or labels, is of the files that it
    has read.

    Args:
        request: the request.
        caller: its sender.
        slide: name of the slide.
        content: SHA-256 of the slide that is wanted; None: as it was ingested last.

    Raises:
        ProblemError: the slide has not been ingested (404), or was replaced since then (409).
    """
    for again in (False, True):  # an ingest may have ended since the slide was opened
        zoom, version = zoom_of(request, caller, slide, again=again)
        record = zoom.record
        wanted = record is not None and content in {None, record.sha256}
        if record is not None and wanted and zoom.is_as_ingested(caller.store):
            return zoom, record, version
    if record is None:
        raise ProblemError(
            404,
            "not-ingested",
            f"slide {slide!r} has not been ingested: its resolution is not known yet",
            remedy="POST /v1/ingest with it",
        )
    raise ProblemError(
        409,
        "replaced",
        f"slide {slide!r} was replaced since it was ingested: its scale, tissue and labels are "
        "those of other files",
        remedy="POST /v1/ingest with it again, or put the former files back",
    )


def zoom_of_field(request: Request, caller: Caller, field: str) -> tuple[Zoom, FieldRecord, str]:
    """Return a finished field, its record and its version, like `zoom_of`.

    Raises:
        ObjectNotFoundError: there is no such field, or it is not finished.
        DamagedObjectError: its slide is not as it was made.
    """
    record = caller.store.get_model(field_key(field, "field.json"), FieldRecord)
    key, digest = field_key(field, "slide.tiff"), record.sha256.get("slide.tiff")

    def find() -> Files:
        if digest is not None:
            check_whole(caller.store, key, digest)
        tag = caller.store.stat(key).tag
        return Files(key, None, sha256(f"{digest} {tag}".encode())[:24])

    zooms: Zooms = request.app.state.zooms
    zoom, version = zooms.get(caller.store, f"fields/{field}/{digest}", find)
    return zoom, record, version
