"""Chooses the reader of a slide: OpenSlide, an own one by another library, or Pillow."""

from __future__ import annotations

import math
from pathlib import Path

import openslide
from PIL import Image

from shared.errors import InputError
from shared.imaging.companions import companions
from shared.imaging.czi_slide import CziSlide
from shared.imaging.isyntax_slide import IsyntaxSlide
from shared.imaging.pictures import read_picture
from shared.imaging.tiff import TiffSlide
from shared.imaging.tiff_facts import TiffFacts, inspect, is_tiff
from shared.imaging.zarr_slide import ZarrSlide, is_zarr

SCANNERS = {
    ".svs", ".ndpi", ".scn", ".mrxs", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi",
    ".isyntax",
}  # fmt: skip
"""Suffixes of scanners' formats; a file of such a name is never taken for a plain image."""


ORIENTATION = 274
"""Tag of TIFF and EXIF that says how a picture is turned; 1: it is upright."""


class _OpenSlide(openslide.OpenSlide):
    """A slide that can be read on after a damaged place.

    OpenSlide's handles fail for ever after their first error, so the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        if min(min(size) for size in self.level_dimensions) < 1:  # stated by damaged metadata
            self.close()
            raise openslide.OpenSlideError("it states a size that is none")

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        try:
            return super().read_region(location, level, size)
        except openslide.OpenSlideError:
            openslide.OpenSlide.__init__(self, self._path)
            raise


def open_source(path: Path) -> openslide.AbstractSlide:
    """Open a slide's file or folder, or a plain image.

    Raises:
        InputError: the file is missing, in no known format or one whose extra is not installed,
            damaged or incomplete, or too large a plain image.
    """
    if is_zarr(path):
        return ZarrSlide(path)
    if not path.is_file():
        raise InputError(f"{path} is {'no slide, but a folder' if path.is_dir() else 'not there'}")
    if path.suffix.lower() == ".isyntax":
        return IsyntaxSlide(path)
    try:
        vendor = openslide.OpenSlide.detect_format(path)
        if is_tiff(path):
            return _open_tiff(path, vendor, inspect(path))
        if vendor == "zeiss":
            return _open_czi(path)
        if vendor in {"mirax", "hamamatsu"}:
            _check_companions(path)
        if vendor is not None:
            return _OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(
            f"{path.name} cannot be opened: {error}. It may be damaged, incomplete, or of a "
            "format or compression that is not read"
        ) from error
    if path.suffix.lower() == ".mrxs" != path.suffix:
        raise InputError(f"{path.name}: OpenSlide wants the ending in small letters: rename it")
    if path.suffix.lower() in SCANNERS:
        raise InputError(
            f"{path.name} cannot be opened: it is not what its name says, or damaged or "
            "incomplete. Copy it again from its source"
        )
    image = read_picture(path)
    _check_upright(path, image.getexif().get(ORIENTATION, 1))
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{path.name} is no colour image: save it with 8 bits per channel")
    return openslide.ImageSlide(image)


def _check_companions(path: Path) -> None:
    """Raise `InputError` if a slide lacks files or names some elsewhere, which OpenSlide reads."""
    try:
        companions(path, listing=True)
    except InputError as error:
        raise InputError(f"{path.name} {error}") from error


def _check_upright(path: Path, orientation: int) -> None:
    """Raise `InputError` if a tag says that the picture must be turned before it is shown."""
    if orientation not in {0, 1}:
        raise InputError(
            f"{path.name} is stored turned (orientation tag {orientation}), and its annotation may "
            "be of either picture: save it upright, without the tag"
        )


def _open_czi(path: Path) -> openslide.AbstractSlide:
    """Open a CZI with OpenSlide; with Zeiss' library if OpenSlide does not read it."""
    try:
        return _OpenSlide(path)
    except openslide.OpenSlideError as error:
        return CziSlide(path, str(error))


def _open_tiff(path: Path, vendor: str | None, facts: TiffFacts) -> openslide.AbstractSlide:
    """Open a TIFF with OpenSlide; with tifffile if OpenSlide does not read all of it."""
    if vendor is None and (facts.maker or path.suffix.lower() in SCANNERS):
        kind = f"a slide of {facts.maker}" if facts.maker else "what its name says"
        raise InputError(
            f"{path.name} cannot be opened as {kind}: it is damaged or incomplete. Copy it again "
            "from its source"
        )
    if vendor in {None, "generic-tiff"}:
        facts.check_samples(path)
    if vendor in {None, "generic-tiff"} and math.prod(facts.size) < math.prod(facts.largest):
        small, large = ("×".join(map(str, each)) for each in (facts.size, facts.largest))
        raise InputError(
            f"{path.name} begins with an image of {small} px, and has one of {large} px behind it, "
            "so its levels are out of order: save it with the largest image first"
        )
    if vendor == "generic-tiff" and not facts.nested:
        facts.check_single(path)
        _check_upright(path, facts.orientation)
        if facts.spare:  # which OpenSlide takes for opacity
            return TiffSlide(path)
        try:
            return _OpenSlide(path)
        except openslide.OpenSlideError:
            return TiffSlide(path)
    if vendor in {None, "generic-tiff"}:
        _check_upright(path, facts.orientation)
        return TiffSlide(path)
    return _OpenSlide(path)
