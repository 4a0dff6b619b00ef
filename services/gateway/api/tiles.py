"""Deep-zoom tiles of slides and of their label maps, in the layout of OpenSeadragon; crops."""

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
from typing import Annotated, Any

import numpy as np
import openslide
from fastapi import APIRouter, Header, Path, Query, Request, Response
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from services.gateway.api.access import Caller, Reader
from services.gateway.api.problems import ProblemError, documented, returning
from services.gateway.api.slides import SlideName, find_slide, ingested
from shared.contracts.base import Classes, Name, class_color
from shared.contracts.ingest import CohortRecord, cohort_key, slide_key
from shared.errors import InputError
from shared.imaging.codec import encode_palette_png, encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap
from shared.imaging.slide import MAX_PLAIN_PIXELS, Slide, local_source
from shared.storage import ObjectStore, sha256

SIDE, OVERLAP = 254, 1
QUALITY = 80
OPEN = 16
"""Slides held open; opening one takes longer than a tile."""
CACHED = "private, max-age=3600"
FRESH_SECONDS = 10.0
"""How long an open slide is taken as the one in the store."""

MOST_CROP = 1024
"""Side of a crop in its own pixels."""

MOST_SPAN = 4096
"""Side of a crop in level-0 pixels: where a slide has no other level, all of them are read."""

COARSE = 16
"""Label maps have one level; tiles coarser than this are read from a smaller copy."""

router = APIRouter(prefix="/v1/slides/{slide}", tags=["tiles"])

Level = Annotated[int, Path(ge=0, le=64)]
Address = Annotated[int, Path(ge=0, le=2**31)]
Match = Annotated[str | None, Header(alias="If-None-Match")]


def drawing(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Document that an operation answers by `drawn`."""
    return documented(404) | returning(media_type) | {304: {"description": "Not modified"}}


def drawn(
    tag: str, match: str | None, caching: str, media_type: str, draw: Callable[[], bytes]
) -> Response:
    """Answer with a picture, which is drawn unless the client has it already.

    Args:
        tag: of all that the picture depends on, without quotes.
        match: ETags of what the client has.
        caching: how long it may be kept.
        media_type: of what `draw` returns.
        draw: makes the picture.
    """
    headers = {"ETag": (tag := f'"{tag}"'), "Cache-Control": caching}
    if match is not None and tag in match:
        return Response(status_code=304, headers=headers)
    return Response(draw(), media_type=media_type, headers=headers)


class Zoom:
    """An open slide that tiles are cut from; closed when nobody uses it any more.

    Attributes:
        tiles: the generator.
        labels: the label map if there is one, and the side of its pixels in level-0 pixels.
    """

    def __init__(self, store: ObjectStore, source: str, labels: str | None) -> None:
        stack = ExitStack()
        weakref.finalize(self, stack.close)
        self.path = stack.enter_context(local_source(store, source))
        self.slide = stack.enter_context(_open(self.path))
        self.tiles = DeepZoomGenerator(self.slide, SIDE, OVERLAP, limit_bounds=False)
        self.labels: LabelMap | None = None
        if labels is not None:
            self.labels = stack.enter_context(LabelMap(store.local(labels)))
        self._small: NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Cut a tile, JPEG. Raises `ProblemError` (404) where there is none."""
        self._check(level, column, row)
        body = io.BytesIO()
        try:
            tile = self.tiles.get_tile(level, (column, row))
        except openslide.OpenSlideError as error:
            raise InputError(f"the slide's file is damaged here: {error}") from error
        tile.save(body, "JPEG", quality=QUALITY)
        return body.getvalue()

    def crop(self, corner: tuple[int, int], side: int, mpp: float, stated: float) -> bytes:
        """Cut a square, PNG.

        Args:
            corner: x and y in level-0 pixels.
            side: in pixels at `mpp`.
            mpp: µm per pixel of the square.
            stated: µm per level-0 pixel, for files that state none.

        Raises:
            InputError: the square does not lie on the slide, spans too much of it, or is finer.
        """
        slide = Slide(self.path, self.slide, stated)
        spans = [round(side * mpp / own) for own in (slide.mpp, slide.mpp_y)]
        size = (slide.width, slide.height)
        if any(at + span > whole for at, span, whole in zip(corner, spans, size, strict=True)):
            raise InputError(
                f"{spans[0]}×{spans[1]} px at {corner} do not lie on the slide, which has "
                f"{slide.width}×{slide.height} px"
            )
        if max(spans) > MOST_SPAN:
            raise InputError(
                f"the square spans {max(spans)} px of the slide, and at most {MOST_SPAN} are read: "
                "ask for a smaller side, or fewer µm per pixel"
            )
        return encode_png(slide.read(*corner, (side, side), mpp))

    def label_tile(self, level: int, column: int, row: int, classes: Classes | None) -> bytes:
        """Cut a tile of the label map, a PNG; label 0 is clear."""
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

    def centres(
        self, level: int, column: int, row: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the pixels of a tile lie: x (width,) and y (height,) in level-0 pixels.

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

    def _labels_at(self, xs: NDArray[np.int64], ys: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.labels is None:
            raise ValueError("no label map")
        with self._lock:
            if xs[-1] - xs[0] > COARSE * SIDE or ys[-1] - ys[0] > COARSE * SIDE:
                if self._small is None:
                    self._small = _shrunk(self.labels)
                return self._small[np.ix_(ys // COARSE, xs // COARSE)]
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


def colored(labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode labels, uint8 (height, width), as a PNG of their colours, where label 0 is clear."""
    return encode_palette_png(labels, colors, transparent=0)


def _open(path: FilePath) -> openslide.AbstractSlide:
    """Open a slide or a plain image. Raises `InputError`."""
    try:
        if openslide.OpenSlide.detect_format(path) is None:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PLAIN_PIXELS:
                    raise InputError(f"{path.name} is too large for a plain image")
        return openslide.open_slide(path)
    except (openslide.OpenSlideError, Image.DecompressionBombError, OSError) as error:
        raise InputError(f"{path.name} cannot be opened as a slide or an image") from error


def _shrunk(labels: LabelMap) -> NDArray[np.uint8]:
    """Take every `COARSE`th pixel of a label map, strip by strip."""
    strips = (
        labels.window(0, y, labels.width, min(LABEL_TILE, labels.height - y))[::COARSE, ::COARSE]
        for y in range(0, labels.height, LABEL_TILE)
    )
    return np.concatenate(list(strips))


@dataclass
class _Slot:
    """A slide that is open, or being opened by one of those who want it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    zoom: Zoom | None = None
    version: str = ""
    checked: float = 0.0


class Zooms:
    """The slides held open, least recently used first."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, caller: Caller, slide: str) -> tuple[Zoom, str]:
        """Open a slide, or take it as it is open.

        Returns:
            The slide, and its version, which its tiles' ETags are made of.

        Raises:
            ProblemError: there is no such slide, or no file of it (404).
            InputError: its file cannot be opened.
        """
        key = (caller.store.url, slide)
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > OPEN:
                self._slots.popitem(last=False)
        with slot.lock:  # another slide need not wait while this one is fetched
            now = time.monotonic()
            if slot.zoom is None or now - slot.checked > FRESH_SECONDS:
                source, labels, version = _look(caller, slide)
                if slot.zoom is None or version != slot.version:
                    slot.zoom, slot.version = Zoom(caller.store, source, labels), version
                slot.checked = now
            return slot.zoom, slot.version


def _look(caller: Caller, slide: str) -> tuple[str, str | None, str]:
    """Return the keys of a slide's file and label map, and a hash of what they are."""
    info = find_slide(caller, slide)
    if info.source is None:
        raise ProblemError(404, "no-source", f"slide {slide!r} has no file")
    labels = slide_key(slide, "labels.tif")
    mapped = caller.store.exists(labels)
    # A source that is no file of the slide's own may be a path outside of the store.
    keys = [key for key in info.files if key == info.source] + [labels] * mapped
    tags = [caller.store.stat(key).tag for key in keys]
    version = sha256(f"{info.model_dump_json()} {tags}".encode())[:24]
    return info.source, labels if mapped else None, version


def zoom_of(request: Request, caller: Caller, slide: str) -> tuple[Zoom, str]:
    """Open a slide, as `Zooms.get`."""
    zooms: Zooms = request.app.state.zooms
    return zooms.get(caller, slide)


@router.get(
    "/deepzoom.dzi",
    response_class=Response,
    responses=documented(404) | returning("application/xml"),
)
def describe_tiles(slide: SlideName, request: Request, caller: Reader) -> Response:
    """Describe a slide's tiles: the file that OpenSeadragon opens."""
    zoom, _ = zoom_of(request, caller, slide)
    return Response(zoom.tiles.get_dzi("jpeg"), media_type="application/xml")


@router.get(
    "/deepzoom_files/{level}/{column}_{row}.jpeg",
    response_class=Response,
    responses=drawing("image/jpeg"),
)
def get_tile(
    slide: SlideName,
    level: Level,
    column: Address,
    row: Address,
    request: Request,
    caller: Reader,
    match: Match = None,
) -> Response:
    """Return a tile of the slide."""
    zoom, version = zoom_of(request, caller, slide)
    tag = f"{version}-{level}-{column}-{row}"
    return drawn(tag, match, CACHED, "image/jpeg", partial(zoom.tile, level, column, row))


@router.get(
    "/labels/{level}/{column}_{row}.png",
    response_class=Response,
    responses=drawing("image/png"),
)
def get_label_tile(
    slide: SlideName,
    level: Level,
    column: Address,
    row: Address,
    request: Request,
    caller: Reader,
    cohort: Annotated[Name | None, Query(description="whose classes give the colours")] = None,
    match: Match = None,
) -> Response:
    """Return a tile of the slide's label map, to lay over the slide's own."""
    classes = None
    if cohort is not None:
        classes = caller.store.get_model(cohort_key(cohort), CohortRecord).classes
    zoom, version = zoom_of(request, caller, slide)
    tag = f"{version}-{level}-{column}-{row}-{cohort}"
    draw = partial(zoom.label_tile, level, column, row, classes)
    return drawn(tag, match, CACHED, "image/png", draw)


@router.get(
    "/crop.png",
    response_class=Response,
    responses=drawing("image/png"),
)
def get_crop(
    slide: SlideName,
    x: Annotated[int, Query(ge=0, le=2**31, description="left edge, level-0 pixels")],
    y: Annotated[int, Query(ge=0, le=2**31, description="upper edge, level-0 pixels")],
    side: Annotated[int, Query(ge=1, le=MOST_CROP, description="pixels of the square")],
    mpp: Annotated[float, Query(gt=0, le=1000, description="µm per pixel of the square")],
    request: Request,
    caller: Reader,
    match: Match = None,
) -> Response:
    """Cut a square out of an ingested slide, at any resolution that the slide has."""
    record = ingested(caller, slide)
    zoom, version = zoom_of(request, caller, slide)
    tag = f"{version}-crop-{x}-{y}-{side}-{mpp}"
    draw = partial(zoom.crop, (x, y), side, mpp, record.mpp)
    return drawn(tag, match, CACHED, "image/png", draw)
