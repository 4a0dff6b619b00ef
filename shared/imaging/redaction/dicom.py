"""What a copy of a DICOM file keeps: the attributes that say how pixels are stored, and the pixels.

Whose slide it is, and by whom, where and when it was made, stands in attributes of every kind
(PS3.15, E.1), so those that stay are listed, and the values of all others become blank.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.uid import UID

from shared.errors import InputError
from shared.imaging.redaction.patches import NoSlideError, disjoint, zeros
from shared.imaging.tiff_facts import MAGIC
from shared.storage import Patch

KEPT = {
    "FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID",
    "MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID",
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality",
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber",
    "InstanceNumber", "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource",
    "InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber",
    "DimensionOrganizationType", "DimensionOrganizationUID", "DimensionIndexPointer",
    "FunctionalGroupPointer", "DimensionIndexValues", "PyramidUID",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "BurnedInAnnotation",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "PixelPaddingValue", "RescaleIntercept", "RescaleSlope", "PresentationLUTShape", "ICCProfile",
    "ColorSpace", "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes",
    "NumberOfOpticalPaths", "FocusMethod", "ExtendedDepthOfField", "NumberOfFocalPlanes",
    "DistanceBetweenFocalPlanes", "ImageOrientationSlide", "XOffsetInSlideCoordinateSystem",
    "YOffsetInSlideCoordinateSystem", "ZOffsetInSlideCoordinateSystem",
    "ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix",
    "ObjectiveLensPower", "ObjectiveLensNumericalAperture", "CondenserLensPower",
    "IlluminationWaveLength", "VolumetricProperties", "FrameType", "SpecimenLabelInImage",
    "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
}  # fmt: skip
"""Attributes whose values stay, at any depth."""

BESIDES = {"LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"}
"""Third values of ImageType of the pictures that come with a slide."""

NUMBERS = {"US", "SS", "UL", "SL", "FL", "FD", "AT", "SV", "UV"}
TEXTS = {"AE", "AS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"}
BINARY = {"OB", "OW", "OD", "OF", "OL", "OV", "UN"}
LONG = BINARY | {"SQ", "SV", "UC", "UR", "UT", "UV"}
"""Kinds of values whose length takes four bytes behind two unused ones."""

UNKNOWN_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS, META = 0x7FE00010, 0x0002
DEPTH = 32
"""Largest depth of sequences in each other."""

IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"


def is_dicom(path: Path) -> bool:
    """Say whether a file has the mark of DICOM. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_dicom_label(path: Path) -> bool:
    """Say whether a file is the label or overview of a DICOM slide."""
    if not is_dicom(path):
        return False
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["ImageType"])
        return not BESIDES.isdisjoint(str(part).upper() for part in header.get("ImageType") or ())
    except OSError:
        raise
    # pydicom raises errors of many kinds for damaged headers.
    except Exception:
        return False


def in_dicom(path: Path) -> list[Patch]:
    """Return how a copy of a DICOM file differs from it.

    Raises:
        InputError: it is a TIFF too, packed, damaged, or no level of a slide.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) in MAGIC:
            raise InputError("it is a TIFF and DICOM in one")
        if is_dicom_label(path):
            raise InputError("it is itself a label or an overview")
        try:
            return disjoint(file, _Walk(file).patches())
        except (struct.error, ValueError, RecursionError) as error:
            raise NoSlideError(f"its DICOM header is damaged ({error})") from error


@dataclass(frozen=True)
class _Element:
    tag: int
    vr: str
    at: int
    length: int


class _Walk:
    """Goes through a DICOM file from element to element, without its values."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
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
        icon = element.tag == PIXELS and depth > 0
        kept = keyword_for_tag(element.tag) in KEPT and not icon
        if unknown and icon:
            raise InputError("it holds a second, packed picture")
        if element.vr == "SQ" or (unknown and element.tag != PIXELS):
            yield from self._items(element, implicit or element.vr == "UN", depth)
        elif unknown or (kept and element.vr not in TEXTS):
            return
        elif element.vr in NUMBERS | BINARY | {"UI"}:
            yield from zeros(element.at, element.at + element.length)
        else:
            for patch in zeros(element.at, element.at + element.length):
                yield Patch(patch.offset, b" " * len(patch.data))

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
