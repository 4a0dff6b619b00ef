"""Zeiss CZI that OpenSlide does not read, such as that with JPEG XR; read by Zeiss' own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared.arrays import UInt8
from shared.errors import InputError
from shared.imaging.tiled import Level, TiledSlide, needs_extra

TILE = 1024
"""Side of the squares that are read at once, pixels of a level."""


class CziSlide(TiledSlide):
    """A CZI with one brightfield channel, 8 bits per colour; what lies between scenes is white.

    Args:
        path: the file.
        reason: why OpenSlide does not read it.

    Raises:
        InputError: the extra `czi` is not installed, or the file is damaged or of another kind.
    """

    def __init__(self, path: Path, reason: str) -> None:
        try:
            from pylibCZIrw.czi import CziReader
        except ImportError as error:
            raise InputError(f"{needs_extra(path, 'CZI', 'czi')} (OpenSlide: {reason})") from error
        try:
            self._file = CziReader(str(path))
            mpp, objective = _facts(self._file.metadata)
            kinds, box = self._file.pixel_types, self._file.total_bounding_box_no_pyramid
            left, top, width, height = self._file.total_bounding_rectangle_no_pyramid
            if min(width, height) < 1:
                raise ValueError("it holds no full resolution")
            self._factors = _factors(self._file)
        # The library raises RuntimeError for most damage, and others for damaged metadata.
        except Exception as error:
            raise InputError(
                f"{path.name} cannot be opened as CZI: {error}. It is damaged or incomplete: copy "
                "it again from its source"
            ) from error
        self._corner = (left, top)
        planes = {axis: stop - start for axis, (start, stop) in box.items() if axis in "ZT"}
        if list(kinds.values()) != ["Bgr24"]:
            self.close()
            names = ", ".join(kinds.values())
            raise InputError(
                f"{path.name} has {len(kinds)} channels of {names}, so it is fluorescence or no "
                "8-bit colour: only brightfield colour is read"
            )
        if max(planes.values()) > 1:
            self.close()
            raise InputError(
                f"{path.name} has {planes['Z']} planes of focus and {planes['T']} times: save one "
                "of them"
            )
        levels = [
            Level(max(1, width // factor), max(1, height // factor), TILE, TILE)
            for factor in self._factors
        ]
        super().__init__("zeiss", levels, mpp, objective)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_tile(self, level: int, column: int, row: int) -> UInt8:
        """Read a square of a level, which libCZI puts together."""
        factor, own = self._factors[level], self._levels[level]
        width = min(TILE, own.width - column * TILE)
        height = min(TILE, own.height - row * TILE)
        bgr = self._file.read(
            roi=(
                self._corner[0] + column * TILE * factor,
                self._corner[1] + row * TILE * factor,
                width * factor,
                height * factor,
            ),
            zoom=1 / factor,
            background_pixel=(1.0, 1.0, 1.0),
        )
        return np.ascontiguousarray(bgr[:height, :width, ::-1])


def _factors(file: Any) -> list[int]:
    """Return the level-0 pixels per pixel of each level of the pyramid, from 1 on."""
    factors = {1}

    def note(_: int, block: Any) -> bool:
        factors.add(max(1, round(block.logicalRect.w / block.physicalSize.w)))
        return True

    file.enumerate_subblocks(note)
    return sorted(factors)


def _facts(metadata: dict[str, Any]) -> tuple[tuple[float, float] | None, str | None]:
    """Return µm per pixel along x and y, and the objective, where they are stated."""
    stated = (metadata.get("ImageDocument") or {}).get("Metadata") or {}
    lengths = {
        str(item.get("@Id")): float(item.get("Value") or 0) * 1e6
        for item in _items(stated, "Scaling", "Items", "Distance")
    }
    x, y = lengths.get("X", 0.0), lengths.get("Y", 0.0)
    lenses = _items(stated, "Information", "Instrument", "Objectives", "Objective")
    power = next((str(lens["NominalMagnification"]) for lens in lenses
                  if lens.get("NominalMagnification")), None)  # fmt: skip
    return ((x, y) if min(x, y) > 0 else None), power


def _items(tree: Any, *names: str) -> list[dict[str, Any]]:
    """Return the elements below a path of names, however many there are."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return [item for item in (tree if isinstance(tree, list) else [tree]) if isinstance(item, dict)]
