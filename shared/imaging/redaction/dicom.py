"""What a copy of a DICOM file keeps: the attributes that say how pixels are stored, and the pixels.

Whose slide it is, and by whom, where and when it was made, stands in attributes of every kind
(PS3.15, E.1), so those that stay are listed, and the values of all others become blank. Only levels
of the slide are copied, and of their pixels the frames that make up their tiles.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import UID

from shared.errors import InputError
from shared.imaging.redaction.dicom_values import LEVEL, UNMARKED, is_known, names_level
from shared.imaging.redaction.patches import NoSlideError, disjoint, zeros
from shared.imaging.tiff_facts import MAGIC
from shared.storage import Patch

NUMBERS = {"US", "SS", "UL", "SL", "FL", "FD", "AT", "SV", "UV"}
BINARY = {"OB", "OW", "OD", "OF", "OL", "OV", "UN"}
LONG = BINARY | {"SQ", "SV", "UC", "UR", "UT", "UV"}
"""Kinds of values whose length takes four bytes behind two unused ones."""

UNKNOWN_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS, META = 0x7FE00010, 0x0002
OFFSETS = {0x7FE00001, 0x7FE00002}
"""ExtendedOffsetTable and ExtendedOffsetTableLengths."""

SHAPE = (
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
)  # fmt: skip
HALVED = "YBR_FULL_422"
"""Pixels of which two share their colour: 2 bytes each."""

LONGEST = 1024
"""Bytes of the longest value that stays, besides pixels and their places."""

DEPTH = 32
"""Largest depth of sequences in each other."""

IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"


def is_dicom(path: Path) -> bool:
    """Say whether a file has the mark of DICOM. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_beside(path: Path) -> bool:
    """Say whether a file is DICOM, but no level of a slide without marks on it, such as a label."""
    if not is_dicom(path):
        return False
    try:
        return not _is_level(_header(path))
    except OSError:
        raise
    # pydicom raises errors of many kinds for damaged headers.
    except Exception:
        return True


def _header(path: Path) -> Dataset:
    tags = [*SHAPE, *LEVEL, *UNMARKED, "PhotometricInterpretation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
        for name in tags:  # values are converted, with warnings, when they are first read
            header.get(name)
        return header


def _is_level(header: Dataset) -> bool:
    marked = [str(header.get(name) or "").strip().upper() for name in UNMARKED]
    return names_level(header.get("ImageType")) and {"", "NO"}.issuperset(marked)


def in_dicom(path: Path) -> list[Patch]:
    """Return how a copy of a DICOM file differs from it.

    Raises:
        InputError: it is a TIFF too, packed, damaged, or no level of a slide without marks on it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) in MAGIC:
            raise InputError("it is a TIFF and DICOM in one")
        try:
            header = _header(path)
            if not _is_level(header):
                raise InputError(BESIDE)
            frames = _Frames.of(header)
            return disjoint(file, _Walk(file, frames).patches())
        except (InputError, OSError):
            raise
        # pydicom raises errors of many kinds for damaged headers.
        except Exception as error:
            raise NoSlideError(f"its DICOM header is damaged ({error})") from error


BESIDE = (
    "it is no level of a slide (the third value of its ImageType is not VOLUME), or it shows "
    "a label (SpecimenLabelInImage, BurnedInAnnotation)"
)


@dataclass(frozen=True)
class _Frames:
    """The frames of a level: how many there are, and bytes of all if they are not compressed."""

    count: int
    size: int

    @classmethod
    def of(cls, header: Dataset) -> _Frames:
        count, rows, columns, samples, bits, width, height = (
            int(header.get(name) or (1 if name == "NumberOfFrames" else 0)) for name in SHAPE
        )
        if min(rows, columns, samples, bits, width, height) < 1:
            raise ValueError("it states no size")
        tiles = math.ceil(width / columns) * math.ceil(height / rows)
        if not 1 <= count <= tiles:
            raise InputError(f"it has {count} frames, but {tiles} tiles in one plane")
        if header.get("PhotometricInterpretation") == HALVED:
            samples = 2
        return cls(count, -(-count * rows * columns * samples * bits // 8))


@dataclass(frozen=True)
class _Element:
    tag: int
    vr: str
    at: int
    length: int


class _Walk:
    """Goes through a DICOM file from element to element, without its values."""

    def __init__(self, file: BinaryIO, frames: _Frames) -> None:
        self._file = file
        self._frames = frames
        self._compressed = self._done = False
        self._end = file.seek(0, 2)

    def patches(self) -> Iterator[Patch]:
        """Yield the patches of a file."""
        yield from zeros(0, 128)
        at, syntax = 132, ""
        while at + 8 <= self._end and self._unpack("<H", at)[0] == META:
            element = self._element(at, implicit=False)
            if element.tag == 0x00020010:
                syntax = UID(self._read(element.at, element.length).rstrip(b"\0 ").decode("ascii"))
            yield from self._value(element, implicit=False, depth=0)
            at = element.at + element.length
        if syntax in {"", DEFLATED, BIG_ENDIAN}:
            raise InputError(f"it is packed in a way ({syntax or 'unknown'}) that is not read")
        self._compressed = UID(syntax).is_compressed
        yield from self._dataset(at, self._end, syntax == IMPLICIT, 0)

    def _dataset(self, at: int, end: int, implicit: bool, depth: int) -> Iterator[Patch]:
        if depth > DEPTH:
            raise ValueError("too many sequences in each other")
        while at < end:
            element = self._element(at, implicit)
            yield from self._value(element, implicit, depth)
            at = self._after(element, implicit)
            if at > end:
                raise ValueError("an element ends behind the file")

    def _after(self, element: _Element, implicit: bool) -> int:
        """Return where an element ends; one of unknown length ends behind its last item."""
        if element.length != UNKNOWN_LENGTH:
            return element.at + element.length
        at = element.at
        while True:
            tag, length = self._mark(at)
            at += 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM:
                raise ValueError("a sequence without items")
            at = at + length if length != UNKNOWN_LENGTH else self._item_end(at, element, implicit)

    def _item_end(self, at: int, parent: _Element, implicit: bool) -> int:
        implicit = implicit or parent.vr == "UN"
        while self._mark(at)[0] != ITEM_END:
            at = self._after(self._element(at, implicit), implicit)
        return at + 8

    def _value(self, element: _Element, implicit: bool, depth: int) -> Iterator[Patch]:
        unknown = element.length == UNKNOWN_LENGTH
        if element.tag == PIXELS and depth == 0:
            yield from self._pixels(element)
            return
        if element.tag == PIXELS and unknown:
            raise InputError("it holds a second, packed picture")
        start, stop = element.at, element.at + element.length
        if element.vr == "SQ" or unknown:
            yield from self._items(element, implicit or element.vr == "UN", depth)
        elif self._stays(element, depth):
            return
        elif element.vr in NUMBERS | BINARY | {"UI"}:
            yield from zeros(start, stop)
        else:
            for patch in zeros(start, stop):
                yield Patch(patch.offset, b" " * len(patch.data))

    def _stays(self, element: _Element, depth: int) -> bool:
        """Say whether a value is one that readers need. Raises `InputError` if it names a label."""
        if element.tag in OFFSETS:
            return depth == 0 and element.vr == "OV" and element.length == 8 * self._frames.count
        name = keyword_for_tag(element.tag)
        if element.length > LONGEST:
            return False
        value = self._read(element.at, element.length)
        if name in LEVEL and not names_level(value.decode("latin-1").split("\\")):
            raise InputError(BESIDE)
        if name in UNMARKED and value.strip(b" \0").upper() not in {b"", b"NO"}:
            raise InputError(BESIDE)
        return is_known(name, element.vr, value)

    def _pixels(self, element: _Element) -> Iterator[Patch]:
        """Yield what lies behind the frames, and check that compressed ones are no more."""
        if self._done:
            raise ValueError("it has pixels twice")
        self._done = True
        if self._compressed != (element.length == UNKNOWN_LENGTH):
            raise ValueError("its pixels are not packed as it says")
        if not self._compressed:
            yield from zeros(element.at + self._frames.size, element.at + element.length)
            return
        tag, length = self._mark(element.at)
        if tag != ITEM or length not in {0, 4 * self._frames.count}:
            raise ValueError("its pixels have no list of frames")
        at, count = element.at + 8 + length, 0
        while (mark := self._mark(at))[0] == ITEM:
            at += 8 + mark[1]
            count += 1
        if count > self._frames.count:
            raise InputError(f"it has {count} pieces of pixels for {self._frames.count} frames")

    def _items(self, parent: _Element, implicit: bool, depth: int) -> Iterator[Patch]:
        at, end = parent.at, self._after(parent, implicit)
        while at < end:
            tag, length = self._mark(at)
            at += 8
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise ValueError("a sequence without items")
            stop = at + length
            if length == UNKNOWN_LENGTH:
                stop = self._item_end(at, parent, implicit)
                yield from self._dataset(at, stop - 8, implicit, depth + 1)
            else:
                yield from self._dataset(at, stop, implicit, depth + 1)
            at = stop

    def _element(self, at: int, implicit: bool) -> _Element:
        group, number = self._unpack("<2H", at)
        tag = group << 16 | number
        if implicit:
            (length,) = self._unpack("<I", at + 4)
            return self._checked(_Element(tag, _vr(tag), at + 8, length))
        vr = self._read(at + 4, 2).decode("ascii")
        if vr in LONG:
            (length,) = self._unpack("<I", at + 8)
            return self._checked(_Element(tag, vr, at + 12, length))
        if not vr.isalpha() or not vr.isupper():
            raise ValueError("an element of an unknown kind")
        (length,) = self._unpack("<H", at + 6)
        return self._checked(_Element(tag, vr, at + 8, length))

    def _checked(self, element: _Element) -> _Element:
        if element.length != UNKNOWN_LENGTH and element.at + element.length > self._end:
            raise ValueError("the file ends in an element")
        return element

    def _mark(self, at: int) -> tuple[int, int]:
        group, number, length = self._unpack("<2HI", at)
        return group << 16 | number, length

    def _unpack(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack(form, self._read(at, struct.calcsize(form)))

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return self._file.read(size)


def _vr(tag: int) -> str:
    """Return the kind of an element whose file does not state it."""
    try:
        return dictionary_VR(tag).split(" ")[0]
    except KeyError:
        return "UN"
