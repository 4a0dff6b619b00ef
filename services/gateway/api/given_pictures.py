"""Pictures that bodies give as PNG: crops and label maps, decoded in the sandbox."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from shared.arrays import UInt8
from shared.datasets.field_inputs import MIN_CROP_SIDE
from shared.errors import InputError
from shared.imaging.sandboxed_picture import MODULE, Picture, read_small
from shared.sandbox import SandboxedFiles

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
        self._files = self._stack.enter_context(SandboxedFiles([self._place], [MODULE]))

    def read(self, data: bytes, *, color: bool = False) -> Picture:
        """Decode a PNG; `color`: to RGB, whatever it holds. Raises `InputError`."""
        width, height = png_sides(data)
        if max(width, height) > self._limit:
            raise InputError(
                f"a picture has {width}×{height} px; at most {self._limit}×{self._limit} px are "
                "allowed"
            )
        self._place.write_bytes(data)  # the same file, which the process may read
        return read_small(self._place, self._files, self._limit, ["PNG"], color=color)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def read_crop(data: bytes, limit: int, pictures: Pictures) -> UInt8:
    """Decode a PNG of a crop to uint8 RGB (side, side, 3). Raises `InputError` if it is unfit."""
    crop = pictures.read(data, color=True).pixels
    height, width = crop.shape[:2]
    if width != height or not MIN_CROP_SIDE <= width <= limit:
        raise InputError(
            f"a crop has {width}×{height} px: send a square of {MIN_CROP_SIDE} to {limit} px"
        )
    return crop
