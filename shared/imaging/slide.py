"""Slides: any format that OpenSlide 4 opens, and plain images with a stated resolution."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType

import cv2
import numpy as np
import openslide
from PIL import Image, UnidentifiedImageError

from shared.arrays import UInt8
from shared.contracts.ingest import SlideRecord, slide_key
from shared.errors import InputError
from shared.storage import Store

MAX_PLAIN_PIXELS = 500_000_000
"""Largest number of pixels of a plain image, which is decoded whole."""

MAX_UPSAMPLING = 1.1
"""Largest factor by which a read may be finer than level 0."""


class Slide:
    """An open slide. Positions are level-0 pixels; sizes are pixels at a stated mpp.

    Attributes:
        width, height: size of the slide, level-0 pixels.
        mpp, mpp_y: µm per level-0 pixel, along x and y.
        vendor: OpenSlide's name of the format; 'image' for plain images.
        levels: number of pyramid levels.
        objective: nominal magnification; None if not stated.
    """

    def __init__(self, path: Path, source: openslide.AbstractSlide, mpp: float | None) -> None:
        self.path = path
        self._source = source
        properties = source.properties
        self.width, self.height = source.dimensions
        self.levels = source.level_count
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "image")
        self.objective = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        stated = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
        stated_y = _number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
        known = stated or mpp
        if known is None:
            raise InputError(
                f"{path.name} states no resolution: pass --mpp with its µm per pixel "
                "(about 0.25 at 40x, 0.5 at 20x)"
            )
        self.mpp = known
        self.mpp_y = stated_y if stated and stated_y else known

    @classmethod
    def open(cls, path: Path, mpp: float | None = None) -> Slide:
        """Open a slide or a plain image.

        Args:
            path: the file.
            mpp: µm per pixel, for files that state none.

        Raises:
            InputError: the file is missing, in no known format, damaged, too large a
                plain image, or of unknown resolution.
        """
        source = open_source(path)
        try:
            return cls(path, source, mpp)
        except InputError:
            source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_mpp(self, mpp: float) -> None:
        """Raise `InputError` if `mpp` is finer than the slide's level 0."""
        if mpp * MAX_UPSAMPLING < self.mpp:
            raise InputError(
                f"{self.path.name} has {self.mpp:.4g} µm/px at its finest level, too coarse for "
                f"the {mpp:.4g} µm/px that were asked for"
            )

    def read(self, x: int, y: int, size: tuple[int, int], mpp: float) -> UInt8:
        """Read a window.

        Args:
            x, y: upper left corner, level-0 pixels; parts outside the slide are white.
            size: width and height in pixels at `mpp`.
            mpp: µm per pixel of the result, which is averaged from the nearest finer level.

        Returns:
            uint8 RGB (height, width, 3).

        Raises:
            InputError: `mpp` is finer than the slide, or the file is damaged in this place.
        """
        self.check_mpp(mpp)
        level = self._source.get_best_level_for_downsample(mpp / self.mpp * 1.001)
        scale = self._source.level_downsamples[level]
        spans = (
            max(1, round(size[0] * mpp / self.mpp / scale)),
            max(1, round(size[1] * mpp / self.mpp_y / scale)),
        )
        try:
            tile = self._source.read_region((x, y), level, spans)
        except openslide.OpenSlideError as error:
            raise InputError(
                f"{self.path.name} cannot be read at ({x}, {y}): {error}. The file is damaged or "
                "incomplete; copy it again from its source"
            ) from error
        white = Image.new("RGB", tile.size, (255, 255, 255))
        white.paste(tile, mask=tile.getchannel("A"))
        rgb = np.asarray(white, np.uint8)
        if spans == size:
            return rgb
        return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)

    def thumbnail(self, max_side: int) -> UInt8:
        """Read the whole slide, at most `max_side` pixels wide and high: uint8 RGB (h, w, 3)."""
        factor = max(1.0, self.width / max_side, self.height / max_side)
        size = (max(1, round(self.width / factor)), max(1, round(self.height / factor)))
        return self.read(0, 0, size, self.mpp * self.width / size[0])


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if value > 0 else None


def open_source(path: Path) -> openslide.AbstractSlide:
    """Open a file with OpenSlide.

    Raises:
        InputError: the file is missing, in no known format, damaged, or too large a plain image.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        if openslide.OpenSlide.detect_format(path) is None:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PLAIN_PIXELS:
                    raise InputError(
                        f"{path.name} is a plain image of {image.width}×{image.height} px: "
                        "make it a pyramidal TIFF first (vips tiffsave --tile --pyramid)"
                    )
        return openslide.open_slide(path)
    except (
        openslide.OpenSlideError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
    ) as error:
        reason = str(error) or "not a slide or an image"
        raise InputError(
            f"{path.name} cannot be opened: {reason}. It may be damaged, incomplete, or of a "
            "format or compression that OpenSlide does not read"
        ) from error


@contextmanager
def local_source(store: Store, source: str) -> Iterator[Path]:
    """Yield a local path of a slide's main file, with its companion files beside it.

    Args:
        store: the store that holds the slide.
        source: an absolute path, which is yielded unchecked, or a key
            `sources/<hash>/<file>` or `slides/<slide>/source/<file>`; formats with several files
            (MRXS, VMS, DICOM) have all of them below the same folder.

    Raises:
        ObjectNotFoundError: the store holds no such object.
    """
    if Path(source).is_absolute():
        yield Path(source)
        return
    parts = PurePosixPath(source).parts
    if parts[0] == "sources":
        prefix = "/".join(parts[:2]) + "/"
    elif parts[0] == "slides" and parts[2:3] == ("source",):
        prefix = "/".join(parts[:3]) + "/"
    else:
        yield store.local(source)
        return
    rest = source.removeprefix(prefix)
    keys = list(store.list(prefix))
    if source not in keys or len(keys) == 1:
        yield store.local(source)
        return
    with tempfile.TemporaryDirectory(prefix="htd-slide-") as folder:
        for key in keys:
            link = Path(folder) / PurePosixPath(key.removeprefix(prefix))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(store.local(key))
        yield Path(folder) / rest


@contextmanager
def open_record(store: Store, slide: str) -> Iterator[tuple[Slide, SlideRecord]]:
    """Open an ingested slide by its name. Raises `ObjectNotFoundError` if there is none."""
    record = store.get_model(slide_key(slide), SlideRecord)
    with (
        local_source(store, record.source) as path,
        Slide.open(path, record.mpp) as opened,
    ):
        yield opened, record
