"""Philips iSyntax, read by libisyntax."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.tiled import Level, TiledSlide, needs_extra


class IsyntaxSlide(TiledSlide):
    """An iSyntax slide.

    Raises:
        InputError: the extra `isyntax` is not installed, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            from isyntax import ISyntax
        except ImportError as error:
            raise InputError(needs_extra(path, "iSyntax", "isyntax")) from error
        try:
            self._file = ISyntax.open(path)
            columns, rows = self._file.tile_width, self._file.tile_height
            levels = [Level(w, h, columns, rows) for w, h in self._file.level_dimensions]
            mpp = (self._file.mpp_x, self._file.mpp_y)
        # libisyntax has errors of its own, without a common kind or text.
        except Exception as error:
            raise InputError(
                f"{path.name} cannot be opened as iSyntax: it is damaged or incomplete. Copy it "
                "again from its source"
            ) from error
        super().__init__("philips-isyntax", levels, mpp if min(mpp) > 0 else None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_tile(self, level: int, column: int, row: int) -> UInt8:
        """Decode a tile."""
        return np.asarray(self._file.read_tile(column, row, level), np.uint8)
