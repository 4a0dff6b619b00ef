"""Small pictures that are decoded in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from shared.arrays import UInt8
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.imaging.marks import Mark, parse_mark
from shared.imaging.pictures import open_picture, read_picture
from shared.sandbox import ANSWER_BYTES, Document, SandboxedFiles, read_document
from shared.storage import sha256

READER = "shared.imaging.sandboxed_picture:PictureReader"
MODULE = "shared.imaging.sandboxed_picture"

UNREADABLE = (OSError, SyntaxError, ValueError)

GREY = {"L", "P", "1"}
"""Pillow's modes of pictures with one number for a pixel."""


class Picture(NamedTuple):
    """A picture.

    Attributes:
        mode: Pillow's name of how it is stored.
        pixels: uint8 (height, width) for the modes in `GREY`, else RGB (height, width, 3).
    """

    mode: str
    pixels: UInt8


class _Facts(Contract):
    width: Annotated[int, Field(ge=1, le=1 << 16)]
    height: Annotated[int, Field(ge=1, le=1 << 16)]
    mode: str = Field(max_length=16)


class PictureReader:
    """Reads a picture inside the sandbox.

    Args:
        path: the file.
        limit: largest width and height, pixels.
        formats: Pillow's names of the formats that it may have.
        color: whether it is read as RGB, whatever it holds.

    Attributes:
        facts: width, height and mode.
    """

    def __init__(self, path: Path, limit: int, formats: Sequence[str], color: bool) -> None:
        try:
            with open_picture(path, formats=tuple(formats)) as image:
                if max(image.size) > limit:
                    raise InputError(
                        f"a picture has {image.width}×{image.height} px; at most {limit}×{limit} "
                        "px are allowed"
                    )
                mode = "RGB" if color else image.mode
                self.facts = {"width": image.width, "height": image.height, "mode": mode}
                shown = image if mode in GREY else image.convert("RGB")
                self._pixels = np.asarray(shown, np.uint8)
        except UNREADABLE as error:
            kinds = " or ".join(formats)
            raise InputError(f"a picture is not a readable {kinds}: send a {kinds}") from error

    def read(self) -> UInt8:
        """Return the pixels."""
        return np.ascontiguousarray(self._pixels)


def read_small(
    path: Path, among: SandboxedFiles, limit: int, formats: Sequence[str], *, color: bool = False
) -> Picture:
    """Read a picture in the sandbox, of at most `limit` pixels along each side.

    Raises:
        InputError: it is larger, damaged, or in no such format.
    """
    file = among.open(READER, path, limit, list(formats), color)
    try:
        facts = _Facts.model_validate(file.facts)
    except ValidationError as error:
        raise InputError("a picture states what none does") from error
    shape = (facts.height, facts.width) + (() if facts.mode in GREY else (3,))
    if max(shape) > limit or np.prod(shape) > ANSWER_BYTES:
        raise InputError("a picture is larger than it may be")
    return Picture(facts.mode, file.read([], shape, np.uint8))


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
