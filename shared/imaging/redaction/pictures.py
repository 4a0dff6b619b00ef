"""What a copy of a plain image keeps: its pixels, and that it is synthetic.

EXIF, comments and other texts become zeros.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from shared.errors import InputError
from shared.imaging.marks import MAX_XMP, kept_xmp
from shared.imaging.pictures import open_picture
from shared.imaging.redaction.patches import NoSlideError, disjoint, zeros
from shared.storage import Patch

ORIENTATION = 274

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"

UNKNOWN, SQLITE = {".isyntax", ".i2syntax"}, b"SQLite format 3"
"""Suffixes of iSyntax, and the beginning of a Sakura slide."""

PNG_KEPT = {b"IHDR": 13, b"IDAT": 1 << 31, b"IEND": 0}
PNG_CLEAR = {0: 2, 2: 6, 3: 256}
"""Chunks of a PNG that stay, once (pixels: in one row), and the largest size of each, bytes.

A palette stays where pixels need it, and what is clear by the kind of colours."""

EMPTY = b"zeRo"
"""Name of a PNG chunk that readers pass over."""

WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH"}
WEBP_TEXTS, WEBP_XMP = 0x2C, 0x04
"""Bits of VP8X that announce a colour profile, EXIF and XMP, and the one of XMP."""

PNG_XMP = b"XML:com.adobe.xmp" + bytes(5)
"""How an iTXt chunk of XMP begins that is not compressed and states no language."""

JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
"""How an APP1 segment of XMP begins."""

BMP_OLD, BMP_HEADER, BMP_MASKS = 40, 56, {3, 6}
"""Bytes of a BMP's header without and with the masks of colours, and codes of pixels with masks.

What longer headers have behind is of colour profiles."""

JFIF, ADOBE = b"JFIF\0", b"Adobe"
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_END, _SCAN = 0xD9, 0xDA
_NEEDED = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), _SCAN, 0xDB, 0xDC, 0xDD}
"""Marks of segments that decoders need: sizes, tables, restarts and scans."""

_COUNTS = {0xDC, 0xDD}
"""Those of one number of two bytes."""


def in_picture(path: Path) -> list[Patch]:
    """Return how a copy of a plain image, or of a JPEG of a VMS slide, differs from it.

    Raises:
        InputError: it is of another format, damaged, or stored turned.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(16)
        if head.startswith(PNG):
            find = _in_png
        elif head.startswith(JPEG):
            find = _in_jpeg
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            find = _in_webp
        elif head.startswith(BMP):
            find = _in_bmp
        else:
            _check_unknown(path, head)
            raise NoSlideError("it is neither a slide nor an image")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                patches = disjoint(file, find(data))
        except (struct.error, ValueError, IndexError) as error:
            raise NoSlideError(error) from error
    if patches:
        _check_upright(path)
    return patches


def _check_unknown(path: Path, head: bytes) -> None:
    """Raise `InputError` if a file is of a format that is read, but whose label is not found."""
    if path.suffix.lower() in UNKNOWN or head.startswith(SQLITE):
        raise InputError("they are not known in this format")


def _check_upright(path: Path) -> None:
    """Raise `InputError` if a tag, which the copy lacks, says that the picture is turned."""
    try:
        with open_picture(path) as image:
            turned = image.getexif().get(ORIENTATION, 1)
    except InputError:  # too large to be read as a picture: a part of a slide
        return
    except (OSError, ValueError, SyntaxError) as error:
        raise NoSlideError(error) from error
    if turned not in {0, 1}:
        raise InputError(f"it is stored turned (orientation tag {turned}): save it upright")


def without_texts(jpeg: bytes) -> bytes:
    """Return a JPEG, or its tables, with zeros for comments and the like. Raises `ValueError`."""
    data = bytearray(jpeg)
    for offset, new in _in_jpeg(jpeg):
        data[offset : offset + len(new)] = new
    return bytes(data)


def _in_jpeg(data: mmap.mmap | bytes) -> Iterator[Patch]:
    at, scan = 2, False
    while True:
        found = _MARKER.search(data, at) if scan else _MARKER.match(data, at)
        if found is None:
            raise ValueError("it ends before its pixels do")
        marker = found[1][0]
        at = found.end()
        if marker == _END:
            yield from zeros(at, len(data))
            return
        (size,) = struct.unpack_from(">H", data, at)
        body, stop = at + 2, at + max(2, size)
        if marker not in _NEEDED:
            if data[body : body + 5] == JFIF and marker == 0xE0:
                body += 14
            elif data[body : body + 5] == ADOBE and marker == 0xEE:
                body += 12
            elif data[body : body + len(JPEG_XMP)] == JPEG_XMP and marker == 0xE1:
                start = body + len(JPEG_XMP)
                if xmp := kept_xmp(bytes(data[start:stop])):
                    yield Patch(start, xmp)
                    body = start + len(xmp)
            yield from zeros(body, min(stop, len(data)))
        elif marker in _COUNTS:
            yield from zeros(body + 2, min(stop, len(data)))
        scan = marker == _SCAN or (scan and marker in _NEEDED)
        at = stop


def _in_png(data: mmap.mmap) -> Iterator[Patch]:
    color = data[25]
    most = PNG_KEPT | {b"PLTE": 768 if color == 3 else -1, b"tRNS": PNG_CLEAR.get(color, -1)}
    at, name, seen = len(PNG), b"", set[bytes]()
    while name != b"IEND":
        before = name
        size, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data):
            raise ValueError("it ends before its pixels do")
        again = name in seen and not name == before == b"IDAT"
        seen.add(name)
        start = at + 8 + len(PNG_XMP)
        xmp = b""
        if name == b"iTXt" and size <= MAX_XMP and data[at + 8 : start] == PNG_XMP:
            xmp = kept_xmp(data[start : at + 8 + size])
        if xmp:
            yield Patch(start, xmp)
            yield Patch(at + 8 + size, struct.pack(">I", zlib.crc32(name + PNG_XMP + xmp)))
        elif again or size > most.get(name, -1):
            yield Patch(at + 4, EMPTY)
            yield from zeros(at + 8, at + 8 + size)
            yield Patch(at + 8 + size, struct.pack(">I", _crc(size)))
        at += 12 + size
    yield from zeros(at, len(data))


def _crc(size: int) -> int:
    """Return the checksum of a PNG's empty chunk."""
    crc = zlib.crc32(EMPTY)
    for patch in zeros(0, size):
        crc = zlib.crc32(patch.data, crc)
    return crc


def _in_webp(data: mmap.mmap) -> Iterator[Patch]:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    at, seen = 12, set[bytes]()
    flags, texts = 0, WEBP_TEXTS
    while at + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, at)
        stop = min(len(data), at + 8 + size + size % 2)
        xmp = kept_xmp(data[at + 8 : at + 8 + size]) if name == b"XMP " and size <= MAX_XMP else b""
        if name == b"VP8X":
            flags = at + 8
        if xmp:
            texts &= ~WEBP_XMP
            yield Patch(at + 8, xmp)
            yield from zeros(at + 8 + len(xmp), stop)
        elif name not in WEBP_KEPT or name in seen:
            yield Patch(at, b"JUNK")
            yield from zeros(at + 8, stop)
        elif name == b"VP8X":
            yield from zeros(at + 18, stop)
        seen.add(name)
        at = stop if stop > at else end
    if flags:
        yield Patch(flags, bytes([data[flags] & ~texts & 0xFF]))
    yield from zeros(at, len(data))


def _in_bmp(data: mmap.mmap) -> Iterator[Patch]:
    (start,) = struct.unpack_from("<I", data, 10)
    width, height, _, bits, packed, size = struct.unpack_from("<2i2H2I", data, 18)
    if not packed:
        size = -(-width * bits // 32) * 4 * abs(height)
    if min(start, width, size) <= 0 or start + size > len(data):
        raise ValueError("it ends before its pixels do")
    (header,), (colors,) = struct.unpack_from("<I", data, 14), struct.unpack_from("<I", data, 46)
    if start < 14 + header:
        raise ValueError("its header reaches into its pixels")
    palette = 4 * min(256, colors or (1 << bits if bits <= 8 else 0))
    masks = 16 if packed in BMP_MASKS and header == BMP_OLD else 0
    yield from zeros(6, 10)
    yield from zeros(14 + min(header, BMP_HEADER), 14 + header)
    yield from zeros(14 + header + masks + palette, start)
    yield from zeros(start + size, len(data))
