"""Why a file is not read as a slide, and how to convert formats that are not read."""

from __future__ import annotations

from pathlib import Path

from shared.errors import InputError
from shared.imaging.slide import Slide

_BIOFORMATS = "OME-TIFF, by QuPath or bioformats2raw"
_SCANNER = "TIFF or DICOM, by its scanner's own software"
_PYRAMID = "pyramidal TIFF, by 'vips tiffsave --tile --pyramid'"

UNREAD = {
    ".vsi": ("Olympus VSI", _BIOFORMATS),
    ".lif": ("Leica LIF", _BIOFORMATS),
    ".xlef": ("Leica XLEF", _BIOFORMATS),
    ".lof": ("Leica LOF", _BIOFORMATS),
    ".ims": ("Imaris", _BIOFORMATS),
    ".nd2": ("Nikon ND2", _BIOFORMATS),
    ".oir": ("Olympus OIR", _BIOFORMATS),
    ".oib": ("Olympus OIB", _BIOFORMATS),
    ".zvi": ("Zeiss ZVI", _BIOFORMATS),
    ".lsm": ("Zeiss LSM", _BIOFORMATS),
    ".stk": ("MetaMorph", _BIOFORMATS),
    ".dv": ("DeltaVision", _BIOFORMATS),
    ".jp2": ("JPEG 2000", _PYRAMID),
    ".j2k": ("JPEG 2000", _PYRAMID),
    ".jpx": ("JPEG 2000", _PYRAMID),
    ".jpf": ("JPEG 2000", _PYRAMID),
    ".jxl": ("JPEG XL", _PYRAMID),
    ".heic": ("HEIC", _PYRAMID),
    ".avif": ("AVIF", _PYRAMID),
    ".dzi": ("Deep Zoom", _PYRAMID),
    ".i2syntax": ("Philips i2Syntax", _SCANNER),
    ".mds": ("Motic MDS", _SCANNER),
    ".mdsx": ("Motic MDSX", _SCANNER),
    ".kfb": ("KFBio KFB", _SCANNER),
    ".sdpc": ("SQRAY SDPC", _SCANNER),
    ".dyj": ("SQRAY DYJ", _SCANNER),
    ".tmap": ("UNIC TMAP", _SCANNER),
    ".tron": ("InteMedic TRON", _SCANNER),
    ".afi": ("Aperio AFI, which lists fluorescence images", "one colour image per slide"),
}
"""Suffix → name of the format, and what to convert it to."""


def why_unread(path: Path) -> str | None:
    """Return why a file is left out if its format is a slide's that is not read, or None."""
    if (known := UNREAD.get(path.suffix.lower())) is None:
        return None
    name, target = known
    return f"is in a format that is not read, {name}: convert it to {target}"


def why_refused(path: Path) -> str:
    """Say why a file is refused as a slide, in words that follow its name; '' if it is not."""
    try:
        Slide.open(path, mpp=1.0).close()
    except InputError as error:
        return str(error).removeprefix(path.name).lstrip()
    return ""
