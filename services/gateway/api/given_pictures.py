"""Pictures that bodies give as PNG: crops and label maps, decoded in the sandbox."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from shared.arrays import UInt8
from shared.contracts.models import ModelRecord
from shared.datasets.field_inputs import check_crop
from shared.errors import InputError
from shared.imaging.sandboxed_picture import MODULE, read_indices
from shared.imaging.tile_images import READER, TileImage, read_image
from shared.sandbox import SandboxedFiles

MODULES = [MODULE, READER.partition(":")[0]]

PNG = b"\x89PNG\r\n\x1a\n"


def png_sides(data: bytes) -> tuple[int, int]:
    """Return the width and height that the header of a PNG states, before anything is decoded.

    Raises:
        InputError: it is no PNG.
    """
    if not (data.startswith(PNG) and data[12:16] == b"IHDR" and len(data) >= 24):
        raise InputError("it is not a readable PNG: send a PNG in base64")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


class Pictures:
    """Decodes the PNGs of one request, in one process of the sandbox.

    Args:
        limit: largest width and height, pixels.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stack = ExitStack()
        folder = tempfile.TemporaryDirectory(prefix="htd-pictures-")
        self._place = Path(self._stack.enter_context(folder)) / "picture"
        self._place.touch()
        self._files = self._stack.enter_context(SandboxedFiles([self._place], MODULES))

    def read_image(self, data: bytes) -> TileImage:
        """Decode a PNG to RGB, as the image of a tile is read. Raises `InputError`."""
        self._hold(data)
        return read_image(self._place, self._files)

    def read_indices(self, data: bytes) -> UInt8:
        """Decode a PNG with one number for a pixel: uint8 (height, width). Raises `InputError`."""
        self._hold(data)
        return read_indices(self._place, self._files)

    def _hold(self, data: bytes) -> None:
        """Put a PNG where the process may read it. Raises `InputError` if it is unfit."""
        width, height = png_sides(data)
        if max(width, height) > self._limit:
            raise InputError(
                f"a picture has {width}×{height} px; at most {self._limit}×{self._limit} px are "
                "allowed"
            )
        self._place.write_bytes(data)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def read_crop(data: bytes, model: ModelRecord, pictures: Pictures) -> UInt8:
    """Decode a PNG of a crop to uint8 RGB (side, side, 3). Raises `InputError` if it is unfit."""
    crop = pictures.read_image(data).pixels
    check_crop("a crop", crop, model)
    return crop
