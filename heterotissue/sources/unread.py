"""Why a file is not read as a slide or a tile, and how to convert formats that are not read."""

from __future__ import annotations

import re
from pathlib import Path

from heterotissue.sources.records import explain
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
    ".tga": ("TGA", "PNG"),
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


ENDINGS_OF = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WebP": ".webp", "BMP": ".bmp"}
"""Format of pictures that are read → what their names end in."""

_KINDS = {
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"RIFF....WEBP": "WebP",
    rb"BM....\0\0\0\0": "BMP",
    rb"GIF8[79]a": "GIF",
    rb"P[123]\n|P[4567]\s+(#[^\n]*\n)*(\d+\s+\d+\s|WIDTH)": "PNM",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\0\0\0\x0cJXL |\xff\x0a": "JPEG XL",
    rb"....ftyp(avif|avis)": "AVIF",
    rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)": "HEIC",
    rb"II\xbc": "JPEG XR",
    rb"8BPS\0": "Photoshop",
    rb"gimp xcf ": "GIMP",
    rb"\x76\x2f\x31\x01": "OpenEXR",
    rb"#\?(RADIANCE|RGBE)\n": "Radiance HDR",
    rb"SIMPLE  = ": "FITS",
    rb"qoif": "QOI",
    rb"DDS \x7c": "DDS",
}
"""How the files of a format of pictures begin, as a regular expression → name of the format."""


def why_unread(path: Path, target: str = "") -> str | None:
    """Return why a file is left out if its suffix is that of a format that is not read, or None.

    Args:
        path: the file.
        target: what to convert it to; default: what suits a slide of that format.
    """
    if (known := UNREAD.get(path.suffix.lower())) is None:
        return None
    return f"is in a format that is not read, {known[0]}: convert it to {target or known[1]}"


def why_not_taken(path: Path) -> str | None:
    """Return why a picture is left out whose suffix is none of those that are read.

    None if the file is no picture by its content, or cannot be read.
    """
    try:
        head = beginning(path)
    except OSError:
        return None
    kind = next((name for start, name in _KINDS.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return None
    if ending := ENDINGS_OF.get(kind):
        return f"is a picture ({kind}), but its name does not say so: let it end in {ending}"
    return f"is a picture in a format that is not read, {kind}: save it as PNG"


def beginning(path: Path) -> bytes:
    """Return the first bytes of a file; none of what is no file. Raises `OSError`."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(512)


def why_unreadable(path: Path, error: OSError) -> str:
    """Say in words that follow a file's name why it cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "is a link to a missing file" if path.is_symlink() else "is not there"
    return f"cannot be read: {explain(error)}"


def why_refused(path: Path) -> str:
    """Say why a file is refused as a slide, in words that follow its name; '' if it is not."""
    try:
        Slide.open(path, mpp=1.0).close()
    except InputError as error:
        return str(error).removeprefix(path.name).lstrip()
    return ""
