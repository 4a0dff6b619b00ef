"""Pictures that bodies give as PNG: crops and label maps, decoded in the sandbox."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from shared.arrays import UInt8
from shared.contracts.models import ModelRecord
from shared.datasets.field_inputs import check_crop
from shared.errors import InputError
from shared.imaging import sandboxed_mask, tile_images
from shared.imaging.masks import Mask
from shared.imaging.sandboxed_mask import open_mask
from shared.imaging.tile_images import TileImage, read_image
from shared.sandbox import SandboxedFiles

MODULES = [reader.partition(":")[0] for reader in (sandboxed_mask.READER, tile_images.READER)]

PLACES = ("image", "labels", "area")
"""Names of the pictures of a request."""

PNG = b"\x89PNG\r\n\x1a\n"


def png_sides(data: bytes) -> tuple[int, int]:
    """Return the width and height that the header of a PNG states, before anything is decoded.

    Raises:
        InputError: it is no PNG.
    """
    if not (data.startswith(PNG) and data[12:16] == b"IHDR" and len(data) >= 24):
        raise InputError("it is not a readable PNG: send a PNG in base64")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def check_indices(mask: Mask) -> None:
    """Raise `InputError` unless a PNG has one number for each pixel, and is upright."""
    if mask.bands != 1:
        raise InputError("it has colours: send one number for each pixel (grey or palette)")
    if mask.orientation != 1:
        raise InputError(
            f"it states the EXIF orientation {mask.orientation}: send it upright, without this tag"
        )


class Pictures:
    """Decodes the PNGs of one request, in one process of the sandbox.

    Args:
        limit: largest width and height, pixels.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stack = ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="htd-pictures-")
        self._folder = Path(self._stack.enter_context(folder))
        places = [self._folder / f"{name}.png" for name in PLACES]
        for place in places:
            place.touch()
        self._files = self._stack.enter_context(SandboxedFiles(places, MODULES))

    def read_image(self, data: bytes) -> TileImage:
        """Decode a PNG to RGB, as the image of a tile is read. Raises `InputError`."""
        return read_image(self._hold(data, "image"), self._files)

    def open_mask(self, data: bytes, name: Literal["labels", "area"]) -> Mask:
        """Open a PNG with one number for a pixel as masks are; it is read before the next one.

        Raises:
            InputError: it is damaged or too large, has colours, or is turned.
        """
        mask = open_mask(self._hold(data, name), self._files)
        check_indices(mask)
        return mask

    def _hold(self, data: bytes, name: str) -> Path:
        """Put a PNG where the process may read it. Raises `InputError` if it is unfit."""
        width, height = png_sides(data)
        if max(width, height) > self._limit:
            raise InputError(
                f"a picture has {width}×{height} px; at most {self._limit}×{self._limit} px are "
                "allowed"
            )
        place = self._folder / f"{name}.png"
        place.write_bytes(data)
        return place

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def read_crop(data: bytes, model: ModelRecord, pictures: Pictures) -> UInt8:
    """Decode a PNG of a crop to uint8 RGB (side, side, 3). Raises `InputError` if it is unfit."""
    crop = pictures.read_image(data).pixels
    check_crop("a crop", crop, model)
    return crop
