"""Images that have masks of their size, tiles and pictures to edit, decoded in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, ValidationError

from shared.arrays import UInt8
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.imaging.marks import mark_of
from shared.imaging.masks import INVERSE, ORIENTATION, Mask, turned
from shared.imaging.pictures import check_jpeg, open_picture
from shared.imaging.tiff_facts import inspect, is_tiff, tiff_size
from shared.sandbox import ANSWER_BYTES, SandboxedFiles, open_sandboxed

MAX_TILE_SIDE = 8192
"""Greatest side of a tile, pixels; larger images must be ingested as slides."""

NEAR_BLACK = 64
"""A picture whose 8-bit values are all below this is almost black: no glass and no stain is."""

READER = "shared.imaging.tile_images:TileImageReader"

Side = Annotated[int, Field(ge=1, le=MAX_TILE_SIDE)]

# What is wrong with a file becomes an InputError; OpenCV would print it as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class TileImage(NamedTuple):
    """An image as it is seen.

    Attributes:
        pixels: uint8 RGB (h, w, 3), upright, with transparent pixels laid on white.
        turn: the orientation that the file states.
        transparent: whether it has transparent pixels.
        synthetic: whether it says that a model made it, or parts of it.
    """

    pixels: UInt8
    turn: int
    transparent: bool
    synthetic: bool


class TileImageFacts(Contract):
    """What the reading process says about an image: see `TileImage`."""

    width: Side
    height: Side
    turn: int = Field(ge=1, le=8)
    transparent: bool
    synthetic: bool


class TileImageReader:
    """Reads the image of a tile inside the sandbox.

    Attributes:
        facts: the fields of `TileImageFacts`.
    """

    def __init__(self, path: Path) -> None:
        image = read_upright(path)
        self._pixels = image.pixels
        height, width = image.pixels.shape[:2]
        self.facts = {
            "width": width,
            "height": height,
            "turn": image.turn,
            "transparent": image.transparent,
            "synthetic": image.synthetic,
        }

    def read(self, top: int, bottom: int) -> UInt8:
        """Return rows, uint8 RGB (rows, width, 3)."""
        return np.ascontiguousarray(self._pixels[top:bottom])


def read_image(path: Path, among: SandboxedFiles | None = None) -> TileImage:
    """Read an image in the sandbox; see `read_upright`.

    Args:
        path: the file.
        among: reads it among other files; None: a process of its own reads it.

    Raises:
        InputError: the file is missing, no image, damaged, or too large.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file: check the path")
    file = (among.open if among else open_sandboxed)(READER, path)
    try:
        facts = TileImageFacts.model_validate(file.facts)
    except ValidationError as error:
        raise InputError(f"{path.name} cannot be read as an image: is it damaged?") from error
    image = np.empty((facts.height, facts.width, 3), np.uint8)
    step = max(1, ANSWER_BYTES // (facts.width * 3))
    for top in range(0, facts.height, step):
        part = image[top : top + step]
        part[:] = file.read([top, top + len(part)], part.shape, np.uint8)
    return TileImage(image, facts.turn, facts.transparent, facts.synthetic)


def read_upright(path: Path) -> TileImage:
    """Read an image. Only the sandbox calls it.

    Raises:
        InputError: the file is no image, is damaged, is too large, or uses little of 16 bits.
    """
    damaged = InputError(f"{path.name} cannot be read as an image: is it damaged?")
    if is_tiff(path):
        facts = inspect(path)
        facts.check_samples(path)
        facts.check_single(path)
    turn, alpha = 1, None
    try:
        with open_picture(path) as picture:
            check_side(path, *picture.size)
            turn = int(picture.getexif().get(ORIENTATION, 1))
            if picture.mode == "LAB":  # OpenCV takes it for RGB
                raise InputError(f"{path.name} has the colours of CIELAB: save it as RGB")
            picture.load()  # OpenCV fills what a truncated file lacks
            if picture.format == "JPEG":
                check_jpeg(path)
            if picture.has_transparency_data:
                alpha = picture.convert("RGBA")
    except UnidentifiedImageError:
        # It may be a TIFF of 16 bits, which only OpenCV reads.
        check_side(path, *tiff_size(path))
        if _decoded(path, cv2.IMREAD_UNCHANGED, damaged).shape[2:] == (4,):
            raise InputError(
                f"{path.name} has 16 bits per channel and transparency: save it with 8 bits"
            ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise damaged from error
    turn = turn if turn in INVERSE else 1
    array = _decoded(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, damaged)
    check_side(path, array.shape[1], array.shape[0])
    if array.max() < NEAR_BLACK:
        stored = _decoded(path, cv2.IMREAD_UNCHANGED, damaged)
        high = int((stored if stored.ndim == 2 else stored[..., :3]).max())  # without opacity
        if stored.dtype == np.uint16:
            raise InputError(
                f"{path.name} has 16 bits per channel, but its highest value is {high} of 65535 "
                f"(data of {high.bit_length()} bits?), so it would be almost black: scale it to "
                "0 to 255, and save it with 8 bits per channel"
            )
    synthetic = mark_of(path) is not None
    if alpha is not None and np.asarray(alpha.getchannel("A")).min() < 255:
        white = Image.new("RGBA", alpha.size, "white")
        laid = Image.alpha_composite(white, alpha).convert("RGB")
        return TileImage(turned(np.asarray(laid, np.uint8), turn), turn, True, synthetic)
    return TileImage(turned(np.asarray(array, np.uint8), turn), turn, False, synthetic)


def _decoded(path: Path, flags: int, damaged: InputError) -> NDArray[Any]:
    """Read an image by OpenCV; raise `damaged` if that is not possible."""
    data = np.fromfile(path, np.uint8)
    array = cv2.imdecode(data, flags) if data.size else None
    if array is None:
        raise damaged
    return array


def check_side(path: Path, width: int, height: int) -> None:
    """Raise `InputError` if an image is larger than a tile may be."""
    if max(width, height) > MAX_TILE_SIDE:
        raise InputError(
            f"{path.name} is {width}×{height} px, more than {MAX_TILE_SIDE} a side: ingest it as "
            "a slide"
        )


def as_seen(name: str, image: UInt8, labels: UInt8, turn: int, mask: Mask) -> UInt8:
    """Turn the labels of an image as the image was turned.

    A mask that states an orientation is turned by its own. One that states none belongs to the
    image as it is stored, or as it is seen; only their sizes can tell which.

    Args:
        name: name of the image.
        image: uint8 RGB (h, w, 3), upright.
        labels: uint8 (h, w), as they are stored.
        turn: the orientation that the image states.
        mask: the mask that the labels are of.

    Raises:
        InputError: the sizes differ, or cannot tell how the mask lies.
    """
    if mask.orientation != 1:
        labels = turned(labels, mask.orientation)
    elif turn != 1:
        stored, seen = turned(image, INVERSE.get(turn, turn)).shape[:2], image.shape[:2]
        if stored == seen:
            raise InputError(
                f"{name} states the EXIF orientation {turn}, its mask {mask.path.name} none, so "
                "how they lie is unknown: save the image upright, without this tag"
            )
        if labels.shape == stored:
            labels = turned(labels, turn)
    if image.shape[:2] != labels.shape:
        raise InputError(
            f"{name} is {image.shape[1]}×{image.shape[0]} px, its mask "
            f"{mask.path.name} {labels.shape[1]}×{labels.shape[0]}: both must have the same size"
        )
    return labels
