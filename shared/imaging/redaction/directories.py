"""The directories of a TIFF, byte by byte: what they say, and how they are rewritten."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from shared.arrays import Int64

MAX_DIRECTORIES, MAX_ENTRIES = 10_000, 4096
"""Largest number of directories, and of the entries of one."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
         16: 8, 17: 8, 18: 8}  # fmt: skip
"""TIFF's number of a type of values → bytes of a value."""

INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8",
            17: "i8", 18: "u8", 11: "f4", 12: "f8"}  # fmt: skip

ASCII, FLOAT = 2, 11
NDPI_FLAG, SUB_DIRECTORIES = 65420, 330


@dataclass(frozen=True)
class Entry:
    """One tag of a directory.

    Attributes:
        code: number of the tag.
        kind: TIFF's number of the type of its values.
        count: number of values.
        at: offset of the values in the file.
        inside: whether they lie in the entry itself.
        raw: the entry's bytes.
        high: upper half of its value, which NDPI keeps behind the directory.
    """

    code: int
    kind: int
    count: int
    at: int
    inside: bool
    raw: bytes
    high: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the values; 0 if their type is not known."""
        return self.count * SIZES.get(self.kind, 0)


@dataclass(frozen=True)
class Directory:
    """A directory, which describes one picture.

    Attributes:
        offset: its place in the file.
        size: its bytes, with the place of the next directory.
        entries: number of a tag → the tag.
        within: offset of the directory that has this one as a sub-directory; None: it is a page.
    """

    offset: int
    size: int
    entries: Mapping[int, Entry] = field(default_factory=dict)
    within: int | None = None


class Directories:
    """All pages of a TIFF, and their sub-directories.

    Args:
        file: the open file.

    Attributes:
        pages: the directories that are chained, in order.
        nested: the sub-directories of pages.
        ndpi: whether offsets are those of a Hamamatsu NDPI.
        header: bytes before which nothing else lies.

    Raises:
        ValueError, struct.error: the file is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = self._read(0, 16)
        self._order = {b"II": "<", b"MM": ">"}[start[:2]]
        self._big = self._number("H", start[2:4]) == 43
        self.ndpi = False
        self.header = 16 if self._big else 8
        first = self._number("Q", start[8:16]) if self._big else self._number("I", start[4:8])
        if not self._big and self._order == "<" and first:
            self.ndpi = NDPI_FLAG in self._directory(first)[0].entries
            if self.ndpi:
                first, self.header = self._number("Q", start[4:12]), 12
        self.pages: list[Directory] = []
        seen: set[int] = set()
        while first:
            if first in seen or len(seen) == MAX_DIRECTORIES:
                raise ValueError("its directories have no end")
            seen.add(first)
            page, first = self._directory(first)
            self.pages.append(page)
        if not self.pages:
            raise ValueError("it has no directory")
        self.nested = [sub for page in self.pages for sub in self._below(page)]

    def _below(self, page: Directory) -> list[Directory]:
        entry = page.entries.get(SUB_DIRECTORIES)
        if entry is None or self.ndpi:
            return []
        if entry.count > MAX_DIRECTORIES:
            raise ValueError("it has too many sub-directories")
        places = [int(at) for at in self.numbers(entry) if at >= 8]
        return [self._directory(at, page.offset)[0] for at in places]

    def numbers(self, entry: Entry) -> Int64:
        """Return the values of a tag, whole numbers; fractions are cut off."""
        if entry.kind not in INTEGERS:
            raise ValueError(f"the tag {entry.code} holds no numbers")
        if self.ndpi and entry.inside and any(entry.high):
            return np.asarray([self._number("Q", entry.raw[8:12] + entry.high)], np.int64)
        values = np.frombuffer(self.data(entry), self._order + INTEGERS[entry.kind])
        return values.astype(np.int64)

    def number(self, page: Directory, code: int, default: int = 0) -> int:
        """Return the first value of a tag of numbers."""
        entry = page.entries.get(code)
        if entry is None or not entry.count:
            return default
        return int(self.numbers(entry)[0])

    def data(self, entry: Entry) -> bytes:
        """Return the bytes of a tag's values."""
        return self._read(entry.at, entry.size)

    def text(self, page: Directory, code: int) -> bytes:
        """Return the text of a tag, up to its end; nothing if the page has none."""
        entry = page.entries.get(code)
        if entry is None or entry.kind not in {1, ASCII, 7}:
            return b""
        return self.data(entry).partition(b"\0")[0]

    def size(self, page: Directory) -> tuple[int, int]:
        """Return the width and height of a page's picture, pixels."""
        return self.number(page, 256), self.number(page, 257)

    def pieces(self, page: Directory) -> tuple[Int64, Int64]:
        """Return the offsets of a page's tiles or strips, and their lengths in bytes."""
        places, lengths = page.entries.get(324), page.entries.get(325)
        if places is None or lengths is None:
            places, lengths = page.entries[273], page.entries[279]
        starts, sizes = self.numbers(places), self.numbers(lengths)
        if len(starts) != len(sizes):
            raise ValueError("it has pieces without a length")
        return starts, sizes

    def written(
        self, page: Directory, kept: Iterable[int], inside: Mapping[int, bytes], after: int
    ) -> bytes:
        """Rewrite a directory: with some of its entries, in their order, and zeros behind them.

        Args:
            page: the directory.
            kept: the tags that it keeps.
            inside: tag → new value, as long as the old one, of tags whose value lies in the entry.
            after: offset of the next directory; 0: none.
        """
        entries = [entry for code, entry in page.entries.items() if code in set(kept)]
        out = struct.pack(self._order + ("Q" if self._big else "H"), len(entries))
        for entry in entries:
            raw = entry.raw
            if entry.inside:
                value = inside.get(entry.code, raw[-self._wide :][: entry.size])
                raw = raw[: -self._wide] + value.ljust(self._wide, b"\0")
            out += raw
        out += struct.pack(self._order + ("Q" if self._big or self.ndpi else "I"), after)
        out += b"".join(entry.high for entry in entries)
        return out.ljust(page.size, b"\0")

    @property
    def _wide(self) -> int:
        """Bytes of an entry that hold its value, or the place of it."""
        return 8 if self._big else 4

    def _directory(self, at: int, within: int | None = None) -> tuple[Directory, int]:
        """Read a directory, and the offset of the next one."""
        lead, wide, step = (8, 8, 20) if self._big else (2, 4, 12)
        count = self._number("Q" if self._big else "H", self._read(at, lead))
        if not 0 < count <= MAX_ENTRIES:
            raise ValueError("it has an empty directory")
        link = 8 if self._big or self.ndpi else 4
        size = lead + count * step + link + (4 * count if self.ndpi else 0)
        data = self._read(at, size)
        entries: dict[int, Entry] = {}
        for number in range(count):
            raw = data[lead + number * step : lead + (number + 1) * step]
            high = data[size - 4 * (count - number) :][:4] if self.ndpi else b""
            code, kind = struct.unpack(self._order + "2H", raw[:4])
            length = self._number("Q" if self._big else "I", raw[4:-wide])
            place = (
                self._number("Q", raw[-wide:] + high)
                if self.ndpi
                else self._number("Q" if self._big else "I", raw[-wide:])
            )
            inside = length * SIZES.get(kind, 1) <= wide and not (self.ndpi and kind == ASCII)
            spot = at + lead + number * step + step - wide
            entry = Entry(code, kind, length, spot if inside else place, inside, raw, high)
            entries.setdefault(code, entry)
        after = self._number(
            "Q" if link == 8 else "I", data[lead + count * step : lead + count * step + link]
        )
        return Directory(at, size, entries, within), after

    def _number(self, form: str, data: bytes) -> int:
        value: Any = struct.unpack(self._order + form, data)[0]
        return int(value)

    def _read(self, at: int, size: int) -> bytes:
        end = self._file.seek(0, 2)
        if not 0 <= at <= at + size <= end:
            raise ValueError("it ends before its directories do")
        self._file.seek(at)
        return self._file.read(size)
