"""Values of masks: which class each number, or each colour, of a mask stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.arrays import UInt8
from shared.contracts.base import Classes, class_zero, spelling
from shared.errors import InputError, all_quoted, quoted
from shared.imaging.masks import MAX_VALUE, Mask, Values

_COLOR = re.compile(r"#([0-9a-f]{6})|(\d{1,3}) *, *(\d{1,3}) *, *(\d{1,3})", re.IGNORECASE)
_LIKE_COLOR = re.compile(r"#[0-9a-f]{3,}|[\d.%]+( *, *[\d.%]+){2,3}|rgba?\(.*\)", re.IGNORECASE)

ZEROS = {class_zero(exhaustive=False), class_zero(exhaustive=True)}
"""Names of class 0. Which of them is meant is said by the classes, and not by each mask."""

BLACK, WHITE = (0, 0, 0), 240
"""A colour, and the least red, green and blue of another: what backgrounds are drawn in."""


def stated_colors(label_names: dict[str, str]) -> dict[int, str]:
    """Return the colours (0xRRGGBB) among the keys of `label_names`, with their keys.

    Raises:
        InputError: a key looks like a colour, but is none that is read, such as '#f00'.
    """
    colors = {}
    for key in label_names:
        text = key.strip()
        match = _COLOR.fullmatch(text)
        parts = [int(part) for part in match.groups()[1:] if part] if match else []
        if match and max(parts, default=0) <= 255:
            color = int(match[1], 16) if match[1] else parts[0] << 16 | parts[1] << 8 | parts[2]
            colors[color] = key
        elif _LIKE_COLOR.fullmatch(text):
            raise InputError(
                f"{quoted(key)} of --rename (label_names) is no colour that is read: write it as "
                "'#ff8000' or '255,128,0'"
            )
    return colors


class MaskValuesError(InputError):
    """Values of a mask belong to no class.

    Attributes:
        wrong: what is wrong with the mask, without what to do.
    """

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}{remedy}")
        self.wrong = wrong


@dataclass(frozen=True)
class Lookup:
    """How the values of a mask become class indices.

    Attributes:
        table: class index of each value, uint8 (number of values,).
        renamed: keys of `label_names` that are values or colours of the mask.
    """

    table: UInt8
    renamed: frozenset[str] = frozenset()

    def __call__(self, values: Values) -> UInt8:
        """Turn values of the mask into class indices, uint8 of the same shape."""
        return self.table[values]


def lookup(
    mask: Mask,
    classes: Classes,
    label_names: dict[str, str],
    known: dict[int, str] | None = None,
    foreground: int | None = None,
) -> Lookup:
    """Read a mask once, and find the class of each of its values.

    The class of a value is named by `label_names`, else by the format (`known`) or the mask itself.
    A value without a name is itself the class index; with one class, 255 is it too. 0 is class 0,
    unless it is named otherwise. Colours must be named, unless red, green and blue are equal, or
    only red is used: then they are values.

    Args:
        mask: the mask.
        classes: classes of the label map.
        label_names: pixel value or colour ('#rrggbb' or 'r,g,b') as text → class name.
        known: pixel value → name in the format; None if the format has no names.
        foreground: class index of every value but 0; None: values are told apart.

    Raises:
        MaskValuesError: a value belongs to no class.
        InputError: the mask cannot be read, or has several values where one was expected.
    """
    seen = np.zeros(256 if mask.bands == 1 else MAX_VALUE, np.bool_)
    for strip in mask.strips():
        top = int(strip.max(initial=0)) + 1
        if top > len(seen):
            seen = np.concatenate([seen, np.zeros(top - len(seen), np.bool_)])
        seen[strip.ravel()] = True
    values = np.flatnonzero(seen)
    table = np.zeros(int(values[-1]) + 1, np.uint8)
    if foreground is not None:
        marked = values[values > 0]
        if len(marked) > 1 and marked[-1] < len(classes):
            raise InputError(
                f"mask {mask.path.name} lies in the folder of class {classes.names[foreground]!r}, "
                f"which all but black would be, but its values {marked.tolist()} may be classes: "
                "save it black and white, or move masks of class indices out of such folders"
            )
        _check_palette(mask, values.tolist(), "save it black and white")
        table[1:] = foreground
        return Lookup(table)
    names: dict[int, str | None] = {}
    keys = stated_colors(label_names)
    colors = {color: label_names[key] for color, key in keys.items()}
    numbers, red_only = values, False
    if mask.bands >= 3:
        red, green, blue = values >> 16, values >> 8 & 255, values & 255
        red_only = bool((green == 0).all() and (blue == 0).all())
        if colors:
            names = {int(value): colors.get(int(value)) for value in values}
        elif red_only or bool((red == green).all() and (green == blue).all()):
            numbers = red
        else:
            names = dict.fromkeys(values.tolist())
    elif mask.palette and colors:
        names = {
            value: colors.get(_packed(mask.palette[value]))
            for value in values.tolist()
            if value < len(mask.palette)
        }
    elif mask.palette and not label_names:
        remedy = "name each value or colour with --rename (label_names), or save class indices"
        _check_palette(mask, values.tolist(), remedy)
    if names:
        numbered = [key for key in label_names if key.isdecimal()]
        made = _by_color(mask, values, names, classes, numbered)
        shown = {_packed(mask.palette[v]) if mask.palette else v for v in names}
        there = {key for color, key in keys.items() if color in shown}
    else:
        made = _by_number(
            mask, values, numbers, classes, label_names, known or dict(enumerate(mask.names))
        )
        there = set(label_names) & set(map(str, numbers.tolist()))
    return replace(made, renamed=frozenset(there))


def _check_palette(mask: Mask, values: list[int], remedy: str) -> None:
    """Raise if 0 is not black, or white, in a palette in which another value is.

    Programs sort palettes as they like, and black or white is what the background is drawn in.
    """
    if not mask.palette:
        return
    first = mask.palette[0]
    colors = {value: mask.palette[value] for value in values if value < len(mask.palette)}
    for value, color in colors.items() if first != BLACK else ():
        if color == BLACK or min(color) >= WHITE > min(first):
            raise MaskValuesError(
                f"mask {mask.path.name} has a palette that is not in the order of the classes, "
                f"since {value} is {'black' if color == BLACK else 'white'}, not 0",
                f": {remedy}",
            )


def _packed(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _by_color(
    mask: Mask,
    values: NDArray[np.intp],
    names: dict[int, str | None],
    classes: Classes,
    numbered: list[str],
) -> Lookup:
    """Find the class of each value by the name of its colour; `numbered` are names of values."""
    plain = {spelling(item.name): item.index for item in classes.items}
    table = np.zeros(int(values[-1]) + 1, np.uint8)
    wrong = []
    for value, name in names.items():
        color = _packed(mask.palette[value]) if mask.palette else value
        if name is not None and spelling(name) in plain:
            table[value] = plain[spelling(name)]
        elif color:  # black is background
            wrong.append(f"#{color:06x}")
    if wrong:
        mixed = f"Values ({all_quoted(numbered)}) are not read beside colours. " if numbered else ""
        raise MaskValuesError(
            f"mask {mask.path.name} has colours that belong to no class: {_listed(wrong)}",
            f". {mixed}Name each with --rename (label_names), such as "
            f"'{wrong[0]}={classes.names[1]}', or save class indices",
        )
    return Lookup(table)


def _by_number(
    mask: Mask,
    values: NDArray[np.intp],
    numbers: NDArray[np.intp],
    classes: Classes,
    label_names: dict[str, str],
    known: dict[int, str],
) -> Lookup:
    plain = {spelling(item.name): item.index for item in classes.items}
    table = np.zeros(int(values[-1]) + 1, np.uint8)
    binary = len(classes) == 2 and not known and set(numbers.tolist()) <= {0, 255}
    zero = spelling(known.get(0, "")) in {"", *ZEROS, spelling(classes.names[0])}
    wrong: list[str] = []
    for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
        if number == 0 and zero and "0" not in label_names:
            continue
        name = label_names.get(str(number), known.get(number))
        if name is not None and spelling(name) in plain:
            table[value] = plain[spelling(name)]
        elif name is None and binary:
            table[value] = 1
        elif name is None and not known and number < len(classes):
            table[value] = number
        else:
            wrong.append(str(number) if name is None else f"{number} ({name})")
    if wrong:
        high, hints, remedy = int(numbers[-1]), [], "Add them to the classes"
        if high > 255:
            hints.append(f"the highest value is {high}, and 8 bits hold up to 255")
            remedy = "Convert it to 8 bits with the class index of each pixel"
        if len(wrong) > 16:
            hints.append("does it number objects, one by one?")
        hint = f" ({'; '.join(hints)})" if hints else ""
        raise MaskValuesError(
            f"mask {mask.path.name} has labels outside the classes "
            f"{all_quoted(classes.names)}: {_listed(wrong)}{hint}",
            f". {remedy}, or name the values with --rename (label_names), such as "
            f"'{wrong[-1].partition(' ')[0]}={classes.names[-1]}'",
        )
    return Lookup(table)


def _listed(items: list[str], most: int = 12) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"[{', '.join(items[:most])}]{more}"
