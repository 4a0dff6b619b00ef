"""Label and macro images, and names, in the files of MIRAX, VMS, VMU and CZI slides."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from shared.errors import InputError
from shared.imaging.companions import HAMAMATSU, MIRAX, OPTIONAL, named_parts
from shared.imaging.redaction.patches import NoSlideError, blanks, zeros
from shared.imaging.redaction.texts import ZEISS
from shared.imaging.redaction.xml import rewritten
from shared.storage import Patch

MIRAX_INI = "Slidedat.ini"

_MIRAX_PIXELS = (b"VIMSLIDE_POSITION_BUFFER", b"StitchingIntensityLayer")
"""How MIRAX' names of the records begin that are needed to place the tiles. All others, such as the
label, the macro image and the scanner's XML, become zeros."""

_MIRAX_LABELS = {b"ScanDataLayer_SlideBarcode", b"ScanDataLayer_SlideThumbnail",
                 b"ScanDataLayer_SlidePreview"}  # fmt: skip
"""MIRAX' names of the pictures that OpenSlide looks for."""

_MIRAX_KEPT = re.compile(
    rb"(?i)(?:SLIDE_ID|IMAGENUMBER_[XY]|OBJECTIVE_MAGNIFICATION|CameraImageDivisionsPerSide|"
    rb"HIER_\w+|NONHIER_\w+|INDEXFILE|FILE_\w+|OVERLAP_[XY]|MICROMETER_PER_PIXEL_[XY]|"
    rb"IMAGE_FORMAT|IMAGE_FILL_COLOR_BGR|DIGITIZER_(?:WIDTH|HEIGHT)|IMAGE_CONCAT_FACTOR)"
)
_VMS_KEPT = re.compile(
    rb"(?i)(?:No\w{1,12}|(?:ImageFile|MapFile|OptimisationFile)[\d(),]*|SourceLens|BitsPerPixel|"
    rb"PixelOrder|Physical(?:Macro)?(?:Width|Height)|[XYZ]OffsetFromSlideCentre)"
)
"""Keys whose values stay in the texts of MIRAX, and of VMS and VMU."""

_MACRO = re.compile(rb"(?im)^MacroImage[^=\r\n]*=[^\r\n]*")

_BYTE_ORDER = b"\xef\xbb\xbf"

_CZI_MARK, _CZI_BLOCK, _CZI_METADATA = b"ZISRAWFILE", b"ZISRAWSUBBLOCK", b"ZISRAWMETADATA"
_CZI_KEPT = {_CZI_MARK, _CZI_BLOCK, _CZI_METADATA, b"ZISRAWDIRECTORY"}
"""Names of a CZI's segments that are not left out whole, as the list of attachments is."""


def is_spare(main: Path, part: Path) -> bool:
    """Say whether a copy of a slide does not need one of its files.

    Such are the macro image of a VMS or VMU slide, and pictures and texts in the folder of a MIRAX
    slide that its Slidedat.ini does not name.
    """
    if main.suffix.lower() == MIRAX:
        return part.name != MIRAX_INI and part not in named_parts(main)
    if main.suffix.lower() not in HAMAMATSU:
        return False
    names = {line.partition(b"=")[2].strip() for line in _MACRO.findall(main.read_bytes())}
    return part.name.encode() in names


def in_scanner_file(path: Path) -> list[Patch] | None:
    """Return the patches of a file of a MIRAX, VMS, VMU or CZI slide; None: it is of no such slide.

    Raises:
        InputError: its label cannot be found.
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in HAMAMATSU:
        return _in_keys(path, _VMS_KEPT)
    if suffix in {OPTIONAL, ".ngr"}:
        return []
    if suffix == ".czi":
        with path.open("rb") as file:
            if file.read(len(_CZI_MARK)) != _CZI_MARK:
                raise NoSlideError("it is no CZI")
        return list(_in_czi(path))
    if suffix == MIRAX:
        return list(zeros(0, path.stat().st_size))
    listing = path.parent / MIRAX_INI
    if listing.is_file() and path.parent.with_name(path.parent.name + MIRAX).is_file():
        try:
            if path.name == MIRAX_INI:
                return [*_in_keys(path, _MIRAX_KEPT), *_in_listing(path.read_bytes())]
            found = _records(listing, listing.read_bytes())
            return [patch for name, at, size in found if name == path.name.encode()
                    for patch in zeros(at, at + size)]  # fmt: skip
        except (struct.error, KeyError, ValueError) as error:
            raise InputError(f"its {MIRAX_INI} or index is damaged ({error})") from error
    return None


def _in_keys(path: Path, kept: re.Pattern[bytes]) -> list[Patch]:
    """Return the patches of a text of groups and lines <key>=<value>: all but what readers need."""
    patches, at = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        body = line.rstrip(b"\r\n").removeprefix(_BYTE_ORDER)
        start = at + (len(_BYTE_ORDER) if line.startswith(_BYTE_ORDER) else 0)
        key, equals, value = body.partition(b"=")
        if not equals and not re.fullmatch(rb"\s*\[[\w .-]+\]\s*", body):
            patches.append(blanks(start, start + len(body)))
        elif equals and not kept.fullmatch(key.strip()):
            first = start if path.suffix.lower() in HAMAMATSU else start + len(body) - len(value)
            patches.append(blanks(first, start + len(body)))
        at += len(line)
    return [patch for patch in patches if patch.data]


def _in_listing(text: bytes) -> list[Patch]:
    """Give labels names that no reader looks for."""
    patches = []
    for name in _MIRAX_LABELS:
        for found in re.finditer(re.escape(name), text):
            patches.append(Patch(found.start(), b"ScanDataLayer_".ljust(len(name), b"x")))
    return patches


def _records(listing: Path, text: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the file, place and length of each record of a MIRAX slide that is not needed.

    The index lists a slide's records: a table of pointers, in the order of the listing's layers.
    """
    keys = {
        key.strip().upper(): value.strip()
        for key, _, value in (line.partition(b"=") for line in text.split(b"\n"))
    }
    record, wanted = 0, []
    for layer in range(int(keys.get(b"NONHIER_COUNT", b"0"))):
        for number in range(int(keys[b"NONHIER_%d_COUNT" % layer])):
            name = keys.get(b"NONHIER_%d_VAL_%d" % (layer, number), b"")
            if not name.startswith(_MIRAX_PIXELS):
                wanted.append((record, name))
            record += 1
    if not wanted:
        return
    index = (listing.parent / keys[b"INDEXFILE"].decode()).read_bytes()
    (root,) = struct.unpack_from("<i", index, 5 + len(keys[b"SLIDE_ID"]) + 4)
    for record, name in wanted:
        (head,) = struct.unpack_from("<i", index, root + 4 * record)
        _, page = struct.unpack_from("<2i", index, head)
        count, *_, at, size, file = struct.unpack_from("<7i", index, page)
        if count == 0 and name not in _MIRAX_LABELS:
            continue
        if count != 1 or at < 0 or size < 0:
            raise ValueError(f"its record {name.decode('ascii', 'replace')!r} has no place")
        yield keys[b"FILE_%d" % file], at, size


def _in_czi(path: Path) -> Iterator[Patch]:
    """Yield the patches of a CZI: it is a row of segments, each with its name and length.

    Attachments, which hold the label, leave its list; of its XML the sizes and scales stay.
    """
    end = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at + 32 <= end:
            file.seek(at)
            name, allocated, _ = struct.unpack("<16s2q", file.read(32))
            name = name.rstrip(b"\0")
            if allocated < 0 or not name.startswith((b"ZISRAW", b"DELETED")):
                raise InputError(f"it is damaged at byte {at:,}")
            start, stop = at + 32, min(end, at + 32 + allocated)
            if name not in _CZI_KEPT:
                yield from zeros(start, stop)
            elif name == _CZI_BLOCK:
                yield from _in_block(start, file.read(288), stop)
            elif name == _CZI_METADATA:
                size, _ = struct.unpack_from("<2i", file.read(256))
                text = file.read(size)
                if size < 0 or len(text) < size:
                    raise InputError("its XML is damaged")
                yield Patch(start + 4, bytes(252))
                yield Patch(start + 256, rewritten(text, ZEISS))
                yield from zeros(start + 256 + size, stop)
            at += 32 + allocated
        yield from zeros(at, end)


def _in_block(start: int, head: bytes, stop: int) -> Iterator[Patch]:
    """Yield the patch of the XML of a picture in a CZI, which says when it was taken."""
    if len(head) < 288 or head[16:18] != b"DV":
        return
    size, attached, pixels = struct.unpack_from("<2iq", head)
    (axes,) = struct.unpack_from("<i", head, 16 + 28)
    first = start + max(256, 16 + 32 + 20 * axes)
    last = first + size + attached + pixels
    if min(size, attached, pixels, axes) < 0 or last > stop:
        raise InputError(f"it is damaged at byte {start:,}")
    yield from zeros(first, first + size)
    yield from zeros(last, stop)
