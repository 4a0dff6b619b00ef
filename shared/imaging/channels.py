"""What files say of the channels of an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InputError

_WORDS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_NUMBERED = re.compile(r"(channel|ch|c|image|band)?[\W_\d]*", re.IGNORECASE)
_PURE = {"FF0000": 0, "00FF00": 1, "0000FF": 2}


def check_rgb(path: Path, names: Sequence[str], colors: Sequence[str]) -> None:
    """Check what a file says of three channels that are read as red, green and blue.

    Args:
        path: the file.
        names: name of each channel; empty ones, and numbers, say nothing.
        colors: the colour in which each is shown, RRGGBB; other than pure red, green and blue say
            nothing.

    Raises:
        InputError: they are in another order, or are dyes.
    """
    told = [name for name in names if not _NUMBERED.fullmatch(name)]
    known = [_color_of(name) for name in names]
    if not told:
        known = [_PURE.get(color.upper()) for color in colors]
    elif len(set(told)) > 1 and any(_color_of(name) is None for name in told):
        raise InputError(
            f"{path.name} has the channels {', '.join(names)}, not red, green and blue: it looks "
            "like fluorescence, and only bright-field images are read"
        )
    order = [number for number in known if number is not None]
    placed = all(number in {None, at} for at, number in enumerate(known))
    if not placed and len(set(order)) == len(order):
        said = ", ".join("?" if n is None else ("red", "green", "blue")[n] for n in known)
        raise InputError(
            f"{path.name} has its channels in the order {said}: save it as an RGB image"
        )


def _color_of(name: str) -> int | None:
    """Return 0, 1 or 2 if a channel's name has the word red, green or blue."""
    found = [_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _WORDS]
    return found[0] if len(found) == 1 else None
