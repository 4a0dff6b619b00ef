"""Masks that are decoded in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from shared.contracts.base import ClassName, Contract
from shared.errors import InputError
from shared.imaging import masks
from shared.imaging.masks import Mask
from shared.sandbox import ANSWER_BYTES, SandboxedFiles, open_sandboxed

Side = Annotated[int, Field(ge=1, le=2**31)]


class MaskFacts(Contract):
    """What the reading process says about a mask: the attributes of `Mask`, and the dtype."""

    width: Side
    height: Side
    orientation: int
    palette: tuple[tuple[int, int, int], ...] = Field(max_length=1 << 16)
    bands: int = Field(ge=1, le=4)
    names: tuple[ClassName, ...] = Field(max_length=256)
    dtype: str = Field(pattern=r"^[<>|=]?[biuf][1248]$")

    @model_validator(mode="after")
    def _rows_fit(self) -> MaskFacts:
        if self.width * self.bands * np.dtype(self.dtype).itemsize > ANSWER_BYTES:
            raise ValueError("a row is too long")
        return self


READER = "shared.imaging.sandboxed_mask:MaskReader"


class MaskReader:
    """Reads a mask inside the sandbox.

    Attributes:
        facts: the fields of `MaskFacts`.
    """

    def __init__(self, path: Path) -> None:
        self._mask = masks.open_mask(path)
        self.facts = {
            "width": self._mask.width,
            "height": self._mask.height,
            "orientation": self._mask.orientation,
            "palette": self._mask.palette,
            "bands": self._mask.bands,
            "names": self._mask.names,
            "dtype": self._mask.stored(0, 1).dtype.str,
        }

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """Return rows as they are stored, (rows, width) or (rows, width, bands)."""
        return np.ascontiguousarray(self._mask.stored(top, bottom))


def open_mask(path: Path, among: SandboxedFiles | None = None) -> Mask:
    """Open a mask in the sandbox; see `masks.open_mask`.

    Args:
        path: the file.
        among: reads it among other files; None: a process of its own reads it.

    Raises:
        InputError: the file is missing, damaged, too large, lossy, or in no known format.
    """
    masks.image_kind(path)  # says what is wrong with a file that cannot be read
    file = (among.open if among else open_sandboxed)(READER, path)
    try:
        facts = MaskFacts.model_validate(file.facts)
    except ValidationError as error:
        file.close()
        raise InputError(
            f"mask {path.name} states what no mask does: is it damaged? Save it again"
        ) from error
    dtype = np.dtype(facts.dtype)
    shape = (facts.width,) if facts.bands == 1 else (facts.width, facts.bands)
    step = ANSWER_BYTES // (int(np.prod(shape)) * dtype.itemsize)

    def read(top: int, bottom: int) -> NDArray[Any]:
        out = np.empty((bottom - top, *shape), dtype)
        for at in range(top, bottom, step):
            end = min(bottom, at + step)
            out[at - top : end - top] = file.read([at, end], (end - at, *shape), dtype)
        return out

    return Mask(
        path, facts.width, facts.height, facts.orientation, facts.palette, facts.bands, read,
        facts.names,
    )  # fmt: skip
