"""A file of which only those bytes are fetched that are read."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK = 64 << 10
"""Bytes that are fetched at least; directories of a TIFF lie close to each other."""

KEPT_BLOCKS = 512
MAX_FETCH = 16 << 20


class RangeFile(io.RawIOBase):
    """A file to read, with a memory of the blocks that were read last.

    Args:
        fetch: returns `length` bytes from `start` on; fewer at the end of the file.
        size: bytes of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._at = fetch, size, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        rest = max(0, self._size - self._at)
        size = rest if size is None or size < 0 else min(size, rest)
        if not size:
            return b""
        first, last = self._at // BLOCK, (self._at + size + BLOCK - 1) // BLOCK
        data = b"".join(self._some(first, last))
        start = self._at - first * BLOCK
        self._at += size
        return data[start : start + size]

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _some(self, first: int, last: int) -> list[bytes]:
        """Return the blocks from `first` to before `last`; fetch runs of them that are missing."""
        found: list[bytes] = []
        at = first
        while at < last:
            if at in self._blocks:
                self._blocks.move_to_end(at)
                found.append(self._blocks[at])
                at += 1
                continue
            end = at + 1
            while end < last and end not in self._blocks and (end - at) * BLOCK < MAX_FETCH:
                end += 1
            data = self._fetch(at * BLOCK, min(end * BLOCK, self._size) - at * BLOCK)
            for number in range(at, end):
                start = (number - at) * BLOCK
                self._blocks[number] = data[start : start + BLOCK]
                found.append(self._blocks[number])
            at = end
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return found
