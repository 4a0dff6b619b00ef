"""Small pictures that are decoded in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from shared.arrays import UInt8
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.imaging.marks import Mark, parse_mark
from shared.imaging.masks import ORIENTATION
from shared.imaging.pictures import open_picture, read_picture
from shared.sandbox import ANSWER_BYTES, Document, SandboxedFiles, read_document
from shared.storage import sha256

MODULE = "shared.imaging.sandboxed_picture"
READER = f"{MODULE}:IndexReader"

UNREADABLE = (OSError, SyntaxError, ValueError)

GREY = {"L", "P", "1"}
"""Pillow's modes of pictures with one number for a pixel."""


class _Facts(Contract):
    width: Annotated[int, Field(ge=1, le=1 << 16)]
    height: Annotated[int, Field(ge=1, le=1 << 16)]


class IndexReader:
    """Reads a PNG with one number for a pixel inside the sandbox: a label map, or an area.

    Attributes:
        facts: width and height.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open_picture(path, formats=("PNG",)) as image:
                self.facts = {"width": image.width, "height": image.height}
                if image.mode not in GREY:
                    raise InputError(
                        f"it has mode {image.mode}: send one number for each pixel (grey or "
                        "palette)"
                    )
                if (turn := int(image.getexif().get(ORIENTATION, 1))) != 1:
                    raise InputError(
                        f"it states the EXIF orientation {turn}: send it upright, without this tag"
                    )
                self._pixels = np.asarray(image, np.uint8)
                if np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
                    raise InputError("it has transparent pixels: send a number for each of them")
        except UNREADABLE as error:
            raise InputError("it is not a readable PNG: send a PNG") from error

    def read(self) -> UInt8:
        """Return the numbers."""
        return np.ascontiguousarray(self._pixels)


def read_indices(path: Path, among: SandboxedFiles) -> UInt8:
    """Read a PNG with one number for a pixel in the sandbox: uint8 (height, width).

    Raises:
        InputError: it is damaged or no PNG, has colours or transparent pixels, or is turned.
    """
    file = among.open(READER, path)
    try:
        facts = _Facts.model_validate(file.facts)
    except ValidationError as error:
        raise InputError("it states what no picture does") from error
    shape = (facts.height, facts.width)
    if np.prod(shape) > ANSWER_BYTES:
        raise InputError("it is larger than a picture may be")
    return file.read([], shape, np.uint8)


class Seen(NamedTuple):
    """What identifies a picture.

    Attributes:
        mark: what it says of itself, if it says that it is synthetic.
        sha256: hash of its pixels as they are stored.
    """

    mark: Mark | None
    sha256: str


def look_at(path: Path) -> Seen:
    """Read the mark and the hash of a picture in the sandbox. Raises `InputError`."""
    try:
        return _SEEN.validate_python(read_document(f"{MODULE}:see", path))
    except ValidationError as error:
        raise InputError(f"{path.name} cannot be read: its parser answered nonsense") from error


def see(path: Path) -> Document:
    """Return the fields of `Seen`; it runs inside the sandbox. Raises `InputError`."""
    with read_picture(path) as picture:
        xmp = picture.info.get("XML:com.adobe.xmp") or picture.info.get("xmp")
        return Document([parse_mark(xmp) if xmp else None, sha256(np.asarray(picture).tobytes())])


_SEEN = TypeAdapter(Seen)
