"""Label and macro images, and names, in the files of MIRAX, VMS, VMU and CZI slides."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared.errors import InputError
from shared.imaging.companions import HAMAMATSU, MIRAX, named_parts
from shared.storage import Patch

MIRAX_INI = "Slidedat.ini"

_MIRAX_LABELS = (b"ScanDataLayer_SlideBarcode", b"ScanDataLayer_SlideThumbnail")
"""MIRAX' names of the label and of the macro image."""

_MIRAX_NAMES = re.compile(
    rb"(?im)^(?:SLIDE_NAME|PROJECT_NAME|SLIDE_CREATIONDATETIME)\s*=([^\r\n]*)"
)

_MACRO = re.compile(rb"(?im)^MacroImage[^=\r\n]*=[^\r\n]*")

_CZI_MARK, _CZI_ATTACHMENT, _CZI_METADATA = b"ZISRAWFILE", b"ZISRAWATTACH", b"ZISRAWMETADATA"
_CZI_ASIDE = {b"Label", b"SlidePreview", b"Prescan", b"Thumbnail"}
"""Names of a CZI's attached pictures that show the label, or the whole glass."""


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


def in_scanner_file(path: Path, names: Iterable[re.Pattern[bytes]]) -> list[Patch] | None:
    """Return the patches of a file of a MIRAX, VMS, VMU or CZI slide; None: it is of no such slide.

    Args:
        path: the file.
        names: patterns of text that identifies people; their first groups are blanked.

    Raises:
        InputError: its label cannot be found.
        OSError: it cannot be read.
    """
    if path.suffix.lower() in HAMAMATSU:
        text = path.read_bytes()
        return [_blank(found.span()) for found in _MACRO.finditer(text)] + _named(text, 0, names)
    if path.suffix.lower() == ".czi":
        with path.open("rb") as file:
            if file.read(len(_CZI_MARK)) != _CZI_MARK:
                return []
        return list(_in_czi(path, names))
    listing = path.parent / MIRAX_INI
    if path.suffix.lower() != MIRAX and listing.is_file():
        text = listing.read_bytes()
        try:
            if path.name == MIRAX_INI:
                return _in_listing(text)
            return [Patch(at, bytes(size)) for name, at, size in _labels(listing, text)
                    if name == path.name.encode()]  # fmt: skip
        except (struct.error, KeyError, ValueError) as error:
            raise InputError(f"its {MIRAX_INI} or index is damaged ({error})") from error
    return None


def _blank(span: tuple[int, int], base: int = 0) -> Patch:
    return Patch(base + span[0], b" " * (span[1] - span[0]))


def _named(text: bytes, base: int, names: Iterable[re.Pattern[bytes]]) -> list[Patch]:
    found = (match for pattern in names for match in pattern.finditer(text))
    return [_blank(match.span(1), base) for match in found if match[1].strip()]


def _in_listing(text: bytes) -> list[Patch]:
    """Return the patches of Slidedat.ini: labels get names that no reader looks for."""
    patches = [_blank(found.span(1)) for found in _MIRAX_NAMES.finditer(text)]
    for name in _MIRAX_LABELS:
        for found in re.finditer(re.escape(name), text):
            patches.append(Patch(found.start(), b"ScanDataLayer_".ljust(len(name), b"x")))
    return patches


def _labels(listing: Path, text: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the file, place and length of each label and macro image of a MIRAX slide.

    The index lists a slide's records: a table of pointers, in the order of the listing's layers.
    """
    keys = {
        key.strip().upper(): value.strip()
        for key, _, value in (line.partition(b"=") for line in text.split(b"\n"))
    }
    record, wanted = 0, []
    for layer in range(int(keys.get(b"NONHIER_COUNT", b"0"))):
        for number in range(int(keys[b"NONHIER_%d_COUNT" % layer])):
            if keys.get(b"NONHIER_%d_VAL_%d" % (layer, number)) in _MIRAX_LABELS:
                wanted.append(record)
            record += 1
    if not wanted:
        return
    index = (listing.parent / keys[b"INDEXFILE"].decode()).read_bytes()
    (root,) = struct.unpack_from("<i", index, 5 + len(keys[b"SLIDE_ID"]) + 4)
    for record in wanted:
        (head,) = struct.unpack_from("<i", index, root + 4 * record)
        _, page = struct.unpack_from("<2i", index, head)
        count, *_, at, size, file = struct.unpack_from("<7i", index, page)
        if count != 1 or at < 0 or size < 0:
            raise ValueError("a label has no place")
        yield keys[b"FILE_%d" % file], at, size


def _in_czi(path: Path, names: Iterable[re.Pattern[bytes]]) -> Iterator[Patch]:
    """Yield the patches of a CZI: it is a row of segments, each with its name and length."""
    end = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while at + 32 <= end:
            file.seek(at)
            name, allocated, _ = struct.unpack("<16s2q", file.read(32))
            name = name.rstrip(b"\0")
            if allocated < 0 or not name.startswith((b"ZISRAW", b"DELETED")):
                raise InputError(f"it is damaged at byte {at:,}")
            if name == _CZI_ATTACHMENT:
                head = file.read(256)
                (size,) = struct.unpack_from("<q", head)
                if head[16 + 48 : 16 + 128].rstrip(b"\0") in _CZI_ASIDE:
                    yield Patch(at + 32 + 256, bytes(max(0, min(size, end - at - 288))))
            elif name == _CZI_METADATA:
                (size,) = struct.unpack_from("<i", file.read(256))
                yield from _named(file.read(size), at + 32 + 256, names)
            at += 32 + allocated
