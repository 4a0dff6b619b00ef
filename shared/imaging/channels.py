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
    words = [[_WORDS[w] for w in re.findall("[a-z]+", n.lower()) if w in _WORDS] for n in told]
    order = [found[0] for found in words if len(found) == 1]
    if not told:
        order = [_PURE[color.upper()] for color in colors if color.upper() in _PURE]
    elif len(order) < len(told) and len(set(told)) > 1:
        raise InputError(
            f"{path.name} has the channels {', '.join(names)}, not red, green and blue: it looks "
            "like fluorescence, and only bright-field images are read"
        )
    if sorted(order) == [0, 1, 2] != order:
        said = ", ".join(("red", "green", "blue")[number] for number in order)
        raise InputError(
            f"{path.name} has its channels in the order {said}: save it as an RGB image"
        )
