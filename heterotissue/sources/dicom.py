"""Whole-slide images in DICOM: the files of a series are one slide."""

from __future__ import annotations

import filecmp
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from heterotissue.sources.records import shown, some
from shared.imaging.redaction import names_level

# What is wrong with a header is told once, with its file; pydicom would print it as well.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of VL Whole Slide Microscopy images."""

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "ConcatenationUID",
    "TotalPixelMatrixColumns", "ImageType",
)  # fmt: skip

_REMEDY = "remove the files of others, or give each slide a SeriesInstanceUID of its own"


@dataclass(frozen=True)
class Instance:
    """One file of a series: one level, label or overview of a slide.

    Attributes:
        path: the file.
        series: SeriesInstanceUID.
        uid: SOPInstanceUID.
        patient: PatientID; None if it is empty.
        width: columns of the whole image, pixels.
        part: whether the file is one part of an image in several files (a concatenation).
        level: whether it is a level of the slide, and not its label or overview.
    """

    path: Path
    series: str
    uid: str
    patient: str | None
    width: int
    part: bool
    level: bool


def is_dicom(path: Path) -> bool:
    """Say whether a file has the mark of DICOM. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_instance(path: Path) -> Instance | str:
    """Read the header of a DICOM file; return why it is no slide if it is none.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            for name in _TAGS:  # values are converted, with warnings, when they are first read
                header.get(name)
        kind, series = header.get("SOPClassUID"), header.get("SeriesInstanceUID")
        if kind != WHOLE_SLIDE:
            return "is DICOM, but no whole-slide image"
        if not series:
            return "states no SeriesInstanceUID, so it is not known which slide it belongs to"
        return Instance(
            path,
            str(series),
            str(header.get("SOPInstanceUID", path.name)),
            str(header.get("PatientID") or "").strip() or None,
            int(header.get("TotalPixelMatrixColumns") or 0),
            bool(header.get("ConcatenationUID")),
            names_level(header.get("ImageType")),
        )
    except OSError:
        raise
    except InvalidDicomError:
        return "is no DICOM file"
    # pydicom raises errors of many kinds for damaged headers.
    except Exception as error:
        return f"has a damaged DICOM header ({type(error).__name__})"


def fault_of(series: list[Instance]) -> str | None:
    """Return why the files of a series, in one folder, are not one slide; None if they are."""
    if any(item.part for item in series):
        return (
            "stores an image in several parts (a concatenation), which OpenSlide does not "
            "read: convert it to single-file DICOM or TIFF, by wsidicomizer for example"
        )
    if len(patients := _patients(series)) > 1:
        return f"is of a series of several patients ({some(patients)}): {_REMEDY}"
    first: dict[str, Instance] = {}
    for item in series:
        other = first.setdefault(item.uid, item)
        if not filecmp.cmp(other.path, item.path, shallow=False):
            return (
                f"is of a series in which {shown(other.path.name)} and {shown(item.path.name)} "
                "have one SOPInstanceUID, but differ: remove the one that is wrong"
            )
    return None


def fault_elsewhere(series: list[Instance], other: Instance) -> str | None:
    """Return why a series is no slide if a file of it lies in another folder.

    None: that file is a copy of one of them.
    """
    for item in series:
        if item.uid == other.uid and filecmp.cmp(item.path, other.path, shallow=False):
            return None
    if len(patients := _patients([*series, other])) > 1:
        return (
            f"is of a series of several patients ({some(patients)}), of which a file is "
            f"{shown(other.path)}: {_REMEDY}"
        )
    return (
        f"is of a series of which {shown(other.path)} lies in another folder: put the files of a "
        "series into one folder, or, if these are two slides, give each a SeriesInstanceUID of its "
        "own"
    )


def main_first(series: list[Instance]) -> list[Instance]:
    """List the files of a series, the level with the most columns first, and copies once."""
    files: dict[str, Instance] = {}
    for item in sorted(series, key=lambda item: item.path):
        files.setdefault(item.uid, item)
    return sorted(files.values(), key=lambda item: (not item.level, -item.width, item.path))


def _patients(series: list[Instance]) -> list[str]:
    return sorted({item.patient for item in series if item.patient})
