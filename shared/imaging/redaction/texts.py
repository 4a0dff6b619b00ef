"""The texts of slides, rewritten: what readers need stays, all else becomes blank."""

from __future__ import annotations

import json
import re

from shared.errors import InputError
from shared.imaging.redaction.xml import NUMBER, Element, element, rewritten
from shared.imaging.tiff_facts import ASIDES, UNITS

APERIO = re.compile(
    rb"\|[ \t]*(?:AppMag|MPP|Left|Top|LineCameraSkew|LineAreaXOffset|LineAreaYOffset|Focus Offset|"
    rb"StripeWidth|OriginalWidth|OriginalHeight|DisplayColor|Exposure Time|Exposure Scale|Gamma|"
    rb"Total Depth)[ \t]*=[ \t]*-?\d[\d.]{0,15}[ \t\r\n]*(?=\||$)"
)
"""Fields of Aperio's description that stay, if they are numbers."""

VENTANA = re.compile(
    rb"(?:^|(?<= ))(?:level=\d{1,2}|mag=\d[\d.]{0,8}|(?:quality|quant)=\d{1,3})(?= |$)"
)
"""Words of the description of a Ventana slide's level that stay."""

PROGRAMS = re.compile(
    rb"^(?:Philips(?: DP v?[\d.]{1,8})?|PerkinElmer-QPI|ScanOutputManager|Ventana|HeteroTissue)"
)
"""Beginnings of the tag Software by which readers know a format."""

IMAGEJ = re.compile(
    rb"(?m)^(?:ImageJ=[\d.]{1,6}[a-z]?|(?:images|channels|slices|frames|spacing|min|max)="
    rb"-?\d[\d.]{0,15}|hyperstack=true|mode=(?:color|composite|grayscale)|loop=false|unit=(?:"
    + rb"|".join(re.escape(unit.encode()) for unit in (*UNITS, "\\u00B5m"))
    + rb"))$"
)
"""Lines of ImageJ's description that stay."""

_sizes = ("sizeX", "sizeY")

OME: dict[str, Element] = {
    "OME": element(),
    "Instrument": element("ID"),
    "Objective": element("ID", "NominalMagnification"),
    "Image": element("ID", named=ASIDES),
    "ObjectiveSettings": element("ID"),
    "Pixels": element(
        "ID", "DimensionOrder", "Type", "SizeX", "SizeY", "SizeZ", "SizeC", "SizeT", "BigEndian",
        "Interleaved", "SignificantBits", "PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeXUnit",
        "PhysicalSizeYUnit",
    ),
    "Channel": element("ID", "SamplesPerPixel"),
    "TiffData": element("IFD", "FirstC", "FirstT", "FirstZ", "PlaneCount", "NumPlanes"),
}  # fmt: skip
"""What stays of OME-XML."""

LEICA: dict[str, Element] = {
    "scn": element(),
    "collection": element(*_sizes),
    "image": element(),
    "pixels": element(*_sizes),
    "dimension": element(*_sizes, "r", "z", "c", "ifd"),
    "view": element(*_sizes, "offsetX", "offsetY", "spacingZ"),
    "scanSettings": element(),
    "objectiveSettings": element(),
    "objective": element(text=NUMBER),
    "illuminationSettings": element(),
    "numericalAperture": element(text=NUMBER),
    "illuminationSource": element(text=NUMBER),
}
"""What stays of the XML of a Leica SCN."""

_philips = ("Name", "Group", "Element", "PMSVR")
PHILIPS: dict[str, Element] = {
    "DataObject": element("ObjectType"),
    "Array": element(),
    "Attribute PIM_DP_SCANNED_IMAGES": element(*_philips),
    "Attribute PIM_DP_IMAGE_TYPE": element(*_philips, text=NUMBER),
    "Attribute PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE": element(*_philips),
    "Attribute DICOM_PIXEL_SPACING": element(*_philips, text=NUMBER),
    "Attribute DICOM_DERIVATION_DESCRIPTION": element(
        *_philips, text=re.compile(r"levels=\d{1,5}(?:,\d{1,5})*")
    ),
}
"""What stays of the XML of a Philips TIFF, which also holds the label image."""

SCAN: dict[str, Element] = {
    "Metadata": element(),
    "iScan": element("Magnification", "ScanRes", "UnitNumber", "Z-layers", "Z-spacing"),
}
"""What stays of a Ventana slide's first XML."""

STITCHING: dict[str, Element] = {
    "EncodeInfo": element("Ver"),
    "SlideStitchInfo": element(),
    "ImageInfo": element(
        "AOIScanned", "AOIIndex", "NumRows", "NumCols", "Width", "Height", "Pos-X", "Pos-Y"
    ),
    "TileJointInfo": element(
        "FlagJoined", "Confidence", "Direction", "Tile1", "Tile2", "OverlapX", "OverlapY"
    ),
    "AoiOrigin": element(),
} | {f"AOI{number}": element("OriginX", "OriginY") for number in range(100)}
"""What stays of the XML that says how a Ventana slide's tiles are joined."""

ZEISS: dict[str, Element] = {
    "ImageDocument": element(),
    "Metadata": element(),
    "Information": element(),
    "Image": element(),
    **{name: element(text=NUMBER) for name in ("SizeX", "SizeY", "SizeZ", "SizeC", "SizeT", "SizeS",
       "SizeM", "SizeB", "PixelType", "ComponentBitCount", "OriginalScanData")},
    "ObjectiveSettings": element(),
    "ObjectiveRef": element("Id"),
    "Instrument": element(),
    "Objectives": element(),
    "Objective": element("Id"),
    "NominalMagnification": element(text=NUMBER),
    "Scaling": element(),
    "Items": element(),
    "Distance": element("Id"),
    "Value": element(text=NUMBER),
}  # fmt: skip
"""What stays of the XML of a CZI."""


def only(text: bytes, kept: re.Pattern[bytes]) -> bytes:
    """Blank a text but for what fits a pattern; lines end where they did."""
    out = bytearray(re.sub(rb"[^\n]", b" ", text))
    for found in kept.finditer(text):
        out[slice(*found.span())] = found[0]
    return bytes(out)


def aperio(text: bytes) -> bytes:
    """Rewrite Aperio's description."""
    return b"Aperio" + only(text, APERIO).replace(b"\n", b" ")[6:]


def shaped(text: bytes) -> bytes:
    """Rewrite the description by tifffile, which states the shape of an array."""
    try:
        stated = json.loads(text)
        shape = [int(side) for side in stated["shape"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError("its description is damaged") from error
    kept = f'{{"shape": {shape}'.encode()
    if len(kept) + 1 > len(text):
        raise InputError("its description has no room for its shape")
    return kept + b" " * (len(text) - len(kept) - 1) + b"}"


def description(text: bytes) -> bytes:
    """Rewrite the description of a TIFF of no scanner; nothing if no reader needs it."""
    if text[-10:].strip().endswith(b"OME>"):
        return rewritten(text, OME)
    if text.startswith(b"ImageJ="):
        return only(text, IMAGEJ)
    if text.startswith(b"{") and b'"shape":' in text:
        return shaped(text)
    return b""
