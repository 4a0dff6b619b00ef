"""Small pictures that are decoded in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shared.errors import InputError
from shared.imaging.marks import Mark, parse_mark
from shared.imaging.pictures import read_picture
from shared.sandbox import Document, read_document
from shared.storage import sha256

MODULE = "shared.imaging.sandboxed_picture"


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
