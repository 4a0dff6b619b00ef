"""Lists of patches, which say how a copy of a file differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from shared.errors import InputError
from shared.storage import Patch


class NoSlideError(InputError):
    """A file is damaged, or of no format that is read; the message goes on after its name."""

    def __init__(self, why: object) -> None:
        super().__init__(
            f"cannot be opened: {why}. It may be damaged, incomplete or of an unknown format: copy "
            "it again from its source, or convert it"
        )


_ZEROS = bytes(1 << 20)


def zeros(start: int, stop: int) -> Iterator[Patch]:
    """Yield patches that make zeros of the bytes from `start` to `stop`; they share one memory."""
    for at in range(start, stop, len(_ZEROS)):
        yield Patch(at, _ZEROS if stop - at >= len(_ZEROS) else bytes(stop - at))


def blanks(start: int, stop: int) -> Patch:
    """Return the patch that makes blanks of the bytes from `start` to `stop`."""
    return Patch(start, b" " * (stop - start))


def disjoint(file: BinaryIO, patches: Iterable[Patch]) -> list[Patch]:
    """Sort patches, cut off what they have in common, and leave out those that change nothing."""
    kept: list[Patch] = []
    done = 0
    for offset, data in sorted(patches, key=lambda patch: patch.offset):
        start = max(offset, done)
        if offset + len(data) <= done:
            continue
        new = data if start == offset else data[start - offset :]
        done = offset + len(data)
        file.seek(start)
        if file.read(len(new)) != new:
            kept.append(Patch(start, new))
    return kept
