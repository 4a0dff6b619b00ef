"""Which values of DICOM attributes stay in a copy: numbers, UIDs and words of DICOM itself."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

LEVEL = ("ImageType", "FrameType")
UNMARKED = ("SpecimenLabelInImage", "BurnedInAnnotation")
"""Attributes that say what an image shows, and whether names may be read in it."""

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
    "LossyImageCompression", "LossyImageCompressionRatio",
    "PixelPaddingValue", "RescaleIntercept", "RescaleSlope", "PresentationLUTShape",
    "ImagedVolumeWidth", "ImagedVolumeHeight", "ImagedVolumeDepth",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes",
    "NumberOfOpticalPaths", "ExtendedDepthOfField", "NumberOfFocalPlanes",
    "DistanceBetweenFocalPlanes", "ImageOrientationSlide", "XOffsetInSlideCoordinateSystem",
    "YOffsetInSlideCoordinateSystem", "ZOffsetInSlideCoordinateSystem",
    "ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix",
    "ObjectiveLensPower", "ObjectiveLensNumericalAperture", "CondenserLensPower",
    "IlluminationWaveLength", "VolumetricProperties", "FrameType", "SpecimenLabelInImage",
}  # fmt: skip
"""Attributes whose values stay, at any depth, where they are of the kind that DICOM says."""

WORDS = {
    "", "ORIGINAL", "DERIVED", "PRIMARY", "VOLUME", "NONE", "RESAMPLED", "SM", "YES", "NO", "00",
    "01", "MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422",
    "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "TILED_FULL", "TILED_SPARSE",
    "3D", "IDENTITY", "INVERSE", "DISTORTED", "SAMPLED",
}  # fmt: skip
"""Words (CS) that stay; character sets stay too."""

_CHARACTER_SET = re.compile(r"ISO[_ ](?:IR|2022 IR) \d{1,3}|GB18030|GBK")
_UID, _DECIMAL, _WHOLE = (
    re.compile(pattern)
    for pattern in (r"\d[\d.]{0,63}", r"[-+]?[\d.]{1,16}(?:[eE][-+]?\d{1,3})?", r"[-+]?\d{1,12}")
)
_TEXTS = {"UI": _UID, "DS": _DECIMAL, "IS": _WHOLE}

_SIZES = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "AT": 4, "SV": 8, "UV": 8}
MOST = 8
"""Largest number of values of an attribute that may have any number."""


def names_level(image_type: Iterable[str] | str | None) -> bool:
    """Say whether an ImageType or FrameType is that of a level of a slide."""
    values = [image_type] if isinstance(image_type, str) else list(image_type or ())
    words = [str(word).strip(" \0").upper() for word in values]
    return len(words) > 2 and words[2] == "VOLUME" and WORDS.issuperset(words)


def is_known(name: str, vr: str, value: bytes) -> bool:
    """Say whether a value is of the kind and number that DICOM says, and of a known form.

    Args:
        name: keyword of its attribute.
        vr: kind of the value that the file states.
        value: its bytes.
    """
    tag = tag_for_keyword(name) if name in KEPT else None
    if tag is None or vr not in dictionary_VR(tag).split(" or "):
        return False
    stated = dictionary_VM(tag).rpartition("-")[2]
    most = int(stated) if stated.isdecimal() else MOST
    if vr == "OB":
        return name == "FileMetaInformationVersion" and len(value) == 2
    if vr in _SIZES:
        return len(value) <= most * _SIZES[vr]
    words = [word.strip(" \0") for word in value.decode("latin-1").split("\\")]
    if len(words) > most:
        return False
    if vr == "CS":
        return all(word in WORDS or _CHARACTER_SET.fullmatch(word) for word in words)
    form = _TEXTS.get(vr)
    return form is not None and all(not word or form.fullmatch(word) for word in words)
