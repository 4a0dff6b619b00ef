"""What a copy of a TIFF keeps: the directories and pixels of its levels. All else becomes zeros.

Directories stay where they are, without the tags that no reader needs, and so do the pixels. The
copy is read again, before it is made: it must show the same levels at the same resolution.
"""

from __future__ import annotations

import io
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from shared.errors import InputError
from shared.imaging.marks import kept_xmp
from shared.imaging.redaction import texts
from shared.imaging.redaction.directories import ASCII, SUB_DIRECTORIES, Directories, Directory
from shared.imaging.redaction.levels import Reading, reading
from shared.imaging.redaction.likeness import check_alike
from shared.imaging.redaction.patches import NoSlideError, disjoint, zeros
from shared.imaging.redaction.pictures import without_texts
from shared.imaging.redaction.pieces import check_apart, pieces
from shared.imaging.redaction.xml import rewritten
from shared.imaging.tiff_facts import TIFF_ERRORS
from shared.storage import Patch

PIECES = {273, 279, 324, 325}
STRUCTURE = PIECES | {
    254, 255, 256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 296, 317, 320, 322, 323,
    338, 339, 529, 530, 531, 532, 32997, 32998, 50674,
}  # fmt: skip
"""Tags of numbers that say how pixels are stored, and where."""

HAMAMATSU = {65324, 65325, 65420, 65421, 65422, 65423, 65424, 65425, 65426, 65432}
"""Those of Hamamatsu."""

COLORS, MOST = 320, 8
"""The tag of a palette, which goes where pixels do not need it; most numbers of other tags."""

DESCRIPTION, MAKE, SOFTWARE, XML = 270, 271, 305, 700

OLD_JPEG, JPEG_TABLES = 6, 347

PADDING = 3
"""Bytes between pieces that are no text; writers fill them up to even places."""

UNLINKED = {"aperio", "hamamatsu"}
"""Makers whose label and macro images leave the chain of directories, which nothing counts."""


def in_tiff(path: Path) -> list[Patch]:
    """Return how a copy of a TIFF differs from it.

    Raises:
        InputError: it is not certain what its levels are, or it is damaged.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            before = reading(file, path)
            patches = disjoint(file, _patches(file, before))
            overlay = cast(BinaryIO, io.BufferedReader(_Patched(file, patches)))
            after = reading(overlay, path)
        if len(before.sizes) > 1:
            check_alike(path, before.sizes)
    except InputError:
        raise
    except TIFF_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NoSlideError(error) from error
    if before != after:
        raise InputError("its levels and resolution stand in a text of an unknown form")
    return patches


def _patches(file: BinaryIO, read: Reading) -> Iterator[Patch]:
    tiff = Directories(file)
    kept: list[tuple[int, int]] = [(0, tiff.header)]
    pages = [
        page
        for number, page in enumerate(tiff.pages)
        if number == 0 or page.offset in read.levels or read.kind not in UNLINKED
    ]
    if read.kind in UNLINKED and pages[0].offset not in read.levels:
        raise InputError("its first image is no level")
    places = [page.offset for page in pages]
    following = dict(zip(places, [*places[1:], 0], strict=True))
    nested = tiff.nested if read.kind in {"tiff", "ome"} else []
    for page in (*pages, *nested):
        if tiff.number(page, 259) == OLD_JPEG:
            raise InputError("its JPEG is of an old kind that is not known well")
        values = _texts(tiff, page, read, first=page is tiff.pages[0])
        codes = {*_structure(tiff, page, read.kind), *values}
        if page.within is None and read.kind in {"tiff", "ome"}:
            codes |= {SUB_DIRECTORIES} & page.entries.keys()
        kept.append((page.offset, page.offset + page.size))
        inside = {code: value for code, value in values.items() if page.entries[code].inside}
        yield Patch(page.offset, tiff.written(page, codes, inside, following.get(page.offset, 0)))
        for code in codes:
            entry = page.entries[code]
            if not entry.inside:
                kept.append((entry.at, entry.at + entry.size))
                if code in values:
                    yield Patch(entry.at, values[code])
    size = file.seek(0, io.SEEK_END)
    every = {page.offset: page for page in (*tiff.pages, *tiff.nested)}.values()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts = [pieces(tiff, page, data) for page in every if page.offset in read.levels]
    others = [
        tiff.pieces(page) for page in every if page.offset not in read.levels and _has_pieces(page)
    ]
    check_apart(parts, others)
    starts = np.concatenate([*(part[0] for part in parts), [start for start, _ in kept], [size]])
    lengths = np.concatenate([*(part[1] for part in parts), [b - a for a, b in kept], [0]])
    yield from _between(starts.astype(np.int64), lengths.astype(np.int64), size)


def _structure(tiff: Directories, page: Directory, kind: str) -> Iterator[int]:
    """Yield the tags of numbers of a directory that stay, besides tables of JPEG."""
    palette = tiff.number(page, 262) == 3
    for code in STRUCTURE | (HAMAMATSU if kind == "hamamatsu" else set()):
        entry = page.entries.get(code)
        if entry is None or entry.size == 0 or entry.kind in {1, ASCII, 6, 7}:
            continue
        many = code in PIECES or code in HAMAMATSU or (code == COLORS and palette)
        if many or entry.count <= MOST:
            yield code


def _has_pieces(page: Directory) -> bool:
    codes = page.entries.keys()
    return codes >= {273, 279} or codes >= {324, 325}


def _between(starts: Any, lengths: Any, size: int) -> Iterator[Patch]:
    """Yield zeros for all bytes that lie in no range."""
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    ends = np.minimum(np.maximum.accumulate(starts + np.maximum(0, lengths[order])), size)
    for number in np.flatnonzero(starts[1:] - ends[:-1] > PADDING):
        yield from zeros(int(ends[number]), int(starts[number + 1]))


def _texts(tiff: Directories, page: Directory, read: Reading, first: bool) -> dict[int, bytes]:
    """Return the new values, as long as the old ones, of the texts of a directory that stay."""
    kept = {}
    if tables := _tables(tiff, page):
        kept[JPEG_TABLES] = without_texts(tables)
    for code in (DESCRIPTION, MAKE, SOFTWARE, XML):
        entry = page.entries.get(code)
        text = tiff.text(page, code)
        if entry is None or not text:
            continue
        new = _text(code, text, read, first, page.offset in read.levels)
        if new:
            kept[code] = new.ljust(entry.size, b"\0")
    return kept


def _tables(tiff: Directories, page: Directory) -> bytes:
    entry = page.entries.get(JPEG_TABLES)
    return b"" if entry is None else tiff.data(entry)


def _text(code: int, text: bytes, read: Reading, first: bool, level: bool) -> bytes:
    """Rewrite a text; nothing: the tag goes."""
    kind = read.kind
    if code == SOFTWARE:
        found = texts.PROGRAMS.match(text)
        return found[0] if found is not None else b""
    if code == MAKE:
        return b"Hamamatsu" if kind == "hamamatsu" and text.startswith(b"Hamamatsu") else b""
    if code == XML:
        if kind != "ventana":
            return kept_xmp(text) if first else b""
        if b"iScan" in text and first:
            return rewritten(text, texts.SCAN)
        return rewritten(text, texts.STITCHING) if level and b"<EncodeInfo" in text else b""
    if kind == "ventana" and level:
        return texts.only(text, texts.VENTANA)
    if kind == "aperio" and level:
        return texts.aperio(text) if text.startswith(b"Aperio") else b""
    if first and kind in {"leica", "philips"}:
        return rewritten(text, texts.LEICA if kind == "leica" else texts.PHILIPS)
    return texts.description(text) if kind in {"tiff", "ome"} and (first or level) else b""


class _Patched(io.RawIOBase):
    """A file as its copy will be."""

    def __init__(self, file: BinaryIO, patches: Sequence[Patch]) -> None:
        self._file, self._patches, self._at = file, patches, 0
        self._starts = [patch.offset for patch in patches]
        self._size = file.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        data = bytearray(self._file.read(len(buffer)))
        end = self._at + len(data)
        number = max(0, bisect_right(self._starts, self._at) - 1)
        while number < len(self._patches) and self._starts[number] < end:
            offset, new = self._patches[number]
            start, stop = max(offset, self._at), min(offset + len(new), end)
            if start < stop:
                data[start - self._at : stop - self._at] = new[start - offset : stop - offset]
            number += 1
        buffer[: len(data)] = data
        self._at = end
        return len(data)
