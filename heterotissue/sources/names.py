"""Names of slides: readable, unique in their cohort, and plain ASCII, whatever the files' names.

The name of a file without its suffix is the name of its slide. Accents are dropped, and other
signs become '-'. If that loses anything, or the name is too long, six digits of the original
name's hash follow: 切片.svs → slide-3fa9c1. So a name depends on its file alone.

Slides of equal names get the name of their folder in front, or, if that is the same, six digits
of their content's hash behind. A slide that a cohort has already keeps its name there, if its file
still has the name that this was made of.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shared.errors import InputError, quoted
from shared.storage import sha256

LONGEST = 80
"""Greatest length of a name, so that longer names can be made of it."""

DIGITS = 6

RESERVED = {"plan", "finish"}
"""Names that units of every job have."""


def plain_name(text: str) -> str:
    """Turn any text into a name of at most `LONGEST` ASCII letters, digits, '.', '_' and '-'."""
    text = unicodedata.normalize("NFC", text)
    spread = unicodedata.normalize("NFKD", text)
    bare = "".join(sign for sign in spread if not unicodedata.combining(sign))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", bare).strip("-._")
    if name == text and len(name) <= LONGEST and name.lower() not in RESERVED:
        return name
    digest = sha256(text.encode("utf-8", "surrogateescape"))[:DIGITS]
    return f"{name[: LONGEST - DIGITS - 1].rstrip('-._') or 'slide'}-{digest}"


class RenamedError(InputError):
    """Files of contents that have names already are now named as other contents."""


class Named(NamedTuple):
    """What a name is made of: the wish, the folder, and the content's SHA-256."""

    wish: str
    folder: str
    sha256: str


def distinct_names(items: Sequence[Named], known: Mapping[str, str]) -> list[str]:
    """Name every item differently; upper and lower case count as equal.

    Args:
        items: what the names are made of; contents must differ.
        known: SHA-256 of the contents that have names already → name.

    Raises:
        RenamedError: what an item's name is made of is not what its known name was made of.
    """
    fresh = _distinct(items, [plain_name(item.wish) for item in items], {})
    if not known:
        return fresh
    of_name = {name.lower(): item.sha256 for name, item in zip(fresh, items, strict=True)}
    for item, name in zip(items, fresh, strict=True):
        before = known.get(item.sha256)
        if before is None or before.lower() == name.lower():
            continue
        if of_name.get(before.lower(), item.sha256) != item.sha256 or not _made_of(before, item):
            raise RenamedError(
                f"{quoted(item.wish)} has the content of slide {quoted(before)}: its file was "
                "renamed, or two "
                "files changed places"
            )
    names = [known.get(item.sha256) or plain_name(item.wish) for item in items]
    return _distinct(items, names, known)


def _distinct(items: Sequence[Named], names: list[str], known: Mapping[str, str]) -> list[str]:
    """Lengthen those of the names that are equal, but no known ones."""
    for longer in (_with_folder, _with_content):
        count = Counter(name.lower() for name in names)
        names = [
            name if count[name.lower()] == 1 or item.sha256 in known else longer(item)
            for name, item in zip(names, items, strict=True)
        ]
    return names


def _made_of(name: str, item: Named) -> bool:
    """Say whether a name may have been made of an item, perhaps in another folder."""
    plain = plain_name(item.wish)
    return name in {plain, _with_folder(item), _with_content(item)} or name.endswith(f"-{plain}")


def _with_folder(item: Named) -> str:
    return plain_name(f"{item.folder}-{item.wish}" if item.folder else item.wish)


def _with_content(item: Named) -> str:
    return f"{plain_name(item.wish)[: LONGEST - DIGITS - 1]}-{item.sha256[:DIGITS]}"
