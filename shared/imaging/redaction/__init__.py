"""What the copy of a slide leaves out: label and macro images, and text that names people.

A copy differs from its source only in the bytes that `redactions` lists. What readers need stays:
the pixels of the levels of the main image, how they are stored, resolution and objective; and that
a picture is synthetic. All else becomes zeros or blanks, in place, so that the length of the file
and the pixels stay. Slides of formats of which it is not known what readers need, or whose label is
not told from their levels, are not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.imaging.redaction.dicom import in_dicom, is_beside, is_dicom
from shared.imaging.redaction.dicom_values import names_level
from shared.imaging.redaction.patches import NoSlideError, disjoint
from shared.imaging.redaction.pictures import in_picture
from shared.imaging.redaction.scanners import in_scanner_file, is_spare
from shared.imaging.redaction.tiff import in_tiff
from shared.imaging.redaction.zarr import in_zarr
from shared.imaging.tiff_facts import is_tiff
from shared.storage import Patch

__all__ = ["NoSlideError", "apply", "in_zarr", "is_left_out", "names_level", "redactions"]


def redactions(path: Path) -> list[Patch]:
    """Return how a copy of a slide's file differs from it: patches that do not overlap, in order.

    Raises:
        NoSlideError: it is damaged, or no slide.
        InputError: its label and macro images cannot be told from its levels.
        OSError: the file cannot be read.
    """
    if (found := in_scanner_file(path)) is not None:
        with path.open("rb") as file:
            return disjoint(file, found)
    if is_dicom(path):
        return in_dicom(path)
    return in_tiff(path) if is_tiff(path) else in_picture(path)


def is_left_out(main: Path, part: Path) -> bool:
    """Say whether a copy of a slide lacks one of its files, such as its label or macro image.

    Args:
        main: the slide's main file.
        part: the other file.

    Raises:
        OSError: a file cannot be read.
    """
    return is_spare(main, part) or is_beside(part)


def apply(path: Path, patches: Sequence[Patch]) -> None:
    """Write patches into a file."""
    with path.open("r+b") as file:
        for patch in patches:
            file.seek(patch.offset)
            file.write(patch.data)
