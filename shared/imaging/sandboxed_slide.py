"""Slides that are decoded in the sandbox, with the interface of OpenSlide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import openslide
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from shared.arrays import UInt8
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.imaging import slide_files
from shared.imaging.companions import companions
from shared.imaging.leveled import LeveledSlide
from shared.imaging.marks import Mark, mark_of
from shared.imaging.patch_cutting import PatchCutter
from shared.sandbox import ANSWER_BYTES, ReadError, open_sandboxed
from shared.sandbox.files import Ranges

SLOTS, SLOT_BYTES = 3, 64 << 20
"""Parts of the memory that a slide's process shares, which hold patches; and bytes of each."""

LONGEST_PROPERTY = 1 << 16
"""Characters of the longest property that is passed on; longer ones are whole documents."""

Side = Annotated[int, Field(ge=1, le=2**31)]
_PLACES = TypeAdapter(list[int])


class SlideFacts(Contract):
    """What the reading process says about a slide, by OpenSlide's names."""

    level_dimensions: tuple[tuple[Side, Side], ...] = Field(min_length=1, max_length=64)
    level_downsamples: tuple[Annotated[float, Field(gt=0)], ...]
    properties: dict[str, str]
    mark: Mark | None

    @model_validator(mode="after")
    def _fitting(self) -> SlideFacts:
        if len(self.level_dimensions) != len(self.level_downsamples):
            raise ValueError("levels have no sizes")
        return self


class SlideReader:
    """Reads a slide inside the sandbox.

    Attributes:
        facts: the fields of `SlideFacts`.
    """

    def __init__(
        self,
        path: Path,
        source: openslide.AbstractSlide | None = None,
        mark: Mark | None = None,
    ) -> None:
        self._path = path
        if source is None:
            source, mark = slide_files.open_source(path), mark_of(path)
        self._source = source
        self._cutter: PatchCutter | None = None
        self.facts = {
            "level_dimensions": self._source.level_dimensions,
            "level_downsamples": self._source.level_downsamples,
            "properties": {
                name: value
                for name, value in self._source.properties.items()
                if len(value) <= LONGEST_PROPERTY
            },
            "mark": mark.known if mark else None,
        }

    def read(self, x: int, y: int, level: int, width: int, height: int) -> UInt8:
        """Read a window of a level, with its corner in level-0 pixels: RGBA (height, width, 4)."""
        return np.asarray(self._source.read_region((x, y), level, (width, height)))

    def fill(
        self,
        memory: memoryview,
        slot: int,
        corners: list[tuple[int, int]],
        level: int,
        spans: list[int],
        size: list[int],
    ) -> list[int]:
        """Cut patches into a slot; see `PatchCutter.cut`, whose result it returns."""
        if self._cutter is None:
            self._cutter = PatchCutter(self._path, self._source)
        shape = (len(corners), size[1], size[0], 3)
        out = np.frombuffer(memory, np.uint8, math.prod(shape), slot * SLOT_BYTES).reshape(shape)
        return self._cutter.cut(corners, level, (spans[0], spans[1]), out)


class SandboxedSlide(LeveledSlide):
    """A slide that a process without other rights decodes.

    Args:
        path: the file or folder.
        parts: its other files.
        ranges: the file on a server, see `open_ranged`; `path` is then only its name.

    Attributes:
        failed: whether the process was lost, so that the slide must be opened again.

    Raises:
        InputError: the slide cannot be opened.
    """

    def __init__(self, path: Path, parts: list[Path], ranges: Ranges | None = None) -> None:
        super().__init__()
        if ranges is not None:
            reader = "shared.imaging.ranged_slide:RangedReader"
            self._file = open_sandboxed(
                reader, path, path.name, files=(), shared=SLOTS * SLOT_BYTES, ranges=ranges
            )
        else:
            # OpenSlide lists the folder of a DICOM slide, also of one with a single file.
            folders = [path] if path.is_dir() else sorted({part.parent for part in (path, *parts)})
            self._file = open_sandboxed(
                "shared.imaging.sandboxed_slide:SlideReader",
                path,
                files=[path, *parts],
                folders=folders,
                shared=SLOTS * SLOT_BYTES,
            )
        try:
            self._facts = SlideFacts.model_validate(self._file.facts)
        except ValidationError as error:
            self.close()
            raise InputError(
                f"{path.name} cannot be opened: it states sizes that no slide has. It is damaged: "
                "copy it again from its source"
            ) from error

    @property
    def failed(self) -> bool:
        return self._file.failed

    @property
    def process(self) -> int:
        """Number of the process that reads."""
        return self._file.pid

    def close(self) -> None:
        """End the reading process."""
        self._file.close()

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level."""
        return self._facts.level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        return self._facts.level_downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        """Properties under OpenSlide's names."""
        return self._facts.properties

    @property
    def mark(self) -> Mark | None:
        """What the file says of itself, if it says that it is synthetic."""
        return self._facts.mark

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a window of a level, with its corner in level-0 pixels: RGBA.

        Raises:
            openslide.OpenSlideError: the file is damaged in this place.
            InputError: reading ended the process, or took too long.
        """
        width, height = size
        if width * height * 4 > ANSWER_BYTES:
            raise InputError(f"{width}×{height} px are more than are read at once")
        place = [int(location[0]), int(location[1]), level, width, height]
        try:
            return Image.fromarray(self._file.read(place, (height, width, 4), np.uint8))
        except ReadError as error:
            raise openslide.OpenSlideError(str(error)) from error

    def cut(
        self,
        slot: int,
        corners: Sequence[tuple[int, int]],
        level: int,
        spans: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[UInt8, list[int]]:
        """Cut patches out of a level; the process does it in threads.

        Args:
            slot: part of the shared memory that they are written to, from 0 to `SLOTS` - 1.
            corners: x and y of each upper left corner, level-0 pixels.
            level: level that they are cut from.
            spans: width and height of a patch, pixels of the level.
            size: its width and height after averaging, pixels. All patches fit into `SLOT_BYTES`.

        Returns:
            uint8 RGB (n, height, width, 3), a view of the slot, where outside of the slide is
            white; and the places in `corners` of patches that cannot be read.

        Raises:
            InputError: reading ended the process, or took too long.
        """
        images = self._file.memory(slot * SLOT_BYTES, (len(corners), size[1], size[0], 3))
        answer = self._file.fill([slot, list(corners), level, list(spans), list(size)])
        try:
            damaged = set(_PLACES.validate_python(answer))
        except ValidationError:
            damaged = {-1}
        if not damaged <= set(range(len(corners))):
            raise InputError(f"{self._file.path.name}: its process says what cannot be")
        return images, sorted(damaged)


def open_source(path: Path) -> SandboxedSlide:
    """Open a slide's file, or a plain image, in the sandbox.

    The process can read the files of this slide, and nothing else.

    Raises:
        InputError: the file is missing, in no known format, damaged or incomplete, too large a
            plain image, or names files that are not its own.
    """
    if not path.exists():
        raise InputError(f"{path} is not there")
    try:
        parts = companions(path)
    except InputError as error:
        raise InputError(f"{path.name} {error}") from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}") from error
    return SandboxedSlide(path, parts)
