"""The tiles and strips of levels: which bytes of a file hold pixels, whatever its lengths say."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from shared.arrays import Int64
from shared.errors import InputError
from shared.imaging.redaction.directories import Directories, Directory

RAW = 1
SCANS = {7: b"\xff\xda", 33003: b"\xff\x93", 33005: b"\xff\x93", 34712: b"\xff\x93"}
"""TIFF's number of JPEG and JPEG 2000 → mark of the beginning of their compressed pixels."""

END = b"\xff\xd9"
"""Mark of the end of both."""

SLACK = 4096
"""Bytes that headers add to pixels which do not become smaller when they are compressed."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def pieces(tiff: Directories, page: Directory, data: mmap.mmap) -> tuple[Int64, Int64]:
    """Return where the pieces of a level begin, and bytes of each, without what lies behind pixels.

    Args:
        tiff: the file's directories.
        page: the level.
        data: the file.
    """
    starts, lengths = tiff.pieces(page)
    lengths = np.where(starts > 0, np.maximum(lengths, 0), 0)
    code = tiff.number(page, _COMPRESSION, RAW)
    most = _raw_sizes(tiff, page, len(starts))
    lengths = np.minimum(lengths, most if code == RAW else 2 * most + SLACK)
    lengths = np.clip(lengths, 0, np.maximum(0, len(data) - starts))
    if code in SCANS:
        ends = [
            _end(data, int(start), int(start + length), SCANS[code])
            for start, length in zip(starts, lengths, strict=True)
        ]
        lengths = np.asarray(ends, np.int64) - starts
    return starts, np.maximum(0, lengths)


def _end(data: mmap.mmap, start: int, stop: int, mark: bytes) -> int:
    """Return where the compressed pixels of a piece end."""
    scan = data.find(mark, start, stop)
    end = data.find(END, scan + len(mark), stop) if scan >= 0 else -1
    return end + len(END) if end >= 0 else stop


def _raw_sizes(tiff: Directories, page: Directory, count: int) -> Int64:
    """Return the bytes of each piece, were it not compressed."""
    width, height = tiff.size(page)
    samples = max(1, tiff.number(page, _SAMPLES, 1))
    bits = int(tiff.numbers(page.entries[_BITS]).max()) if _BITS in page.entries else 1
    separate = tiff.number(page, _PLANAR, 1) == 2
    across, rows = width, min(height, tiff.number(page, _ROWS, height) or height)
    if _TILE_WIDTH in page.entries:
        across, rows = tiff.number(page, _TILE_WIDTH), tiff.number(page, _TILE_HEIGHT)
    row = -(-across * bits * (1 if separate else samples) // 8)
    sizes = np.full(count, row * rows, np.int64)
    down = -(-height // rows) if rows else 0
    if _TILE_WIDTH not in page.entries and down and height % rows:
        sizes[down - 1 :: down] = row * (height % rows)
    return sizes


def check_apart(levels: list[tuple[Int64, Int64]], others: list[tuple[Int64, Int64]]) -> None:
    """Raise `InputError` if pieces of levels overlap each other, or those of other images.

    Pieces that are the same are no fault: programs store empty tiles once.
    """
    own = np.unique(_ranges(levels), axis=0)
    if len(own) and (own[1:, 0] < np.maximum.accumulate(own[:, 1])[:-1]).any():
        raise InputError("tiles or strips of its levels overlap")
    other = _ranges(others)
    if not len(own) or not len(other):
        return
    first = np.searchsorted(own[:, 1], other[:, 0], side="right")
    inside = first < len(own)
    if (own[first[inside], 0] < other[inside, 1]).any():
        raise InputError("tiles or strips of its levels overlap those of another image, or label")


def _ranges(pieces: list[tuple[Int64, Int64]]) -> Any:
    """Return begin and end of each piece that has bytes: (n, 2)."""
    rows = [np.stack([starts, starts + lengths], 1)[lengths > 0] for starts, lengths in pieces]
    return np.concatenate(rows) if rows else np.empty((0, 2), np.int64)
