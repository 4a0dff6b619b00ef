"""Pages of long lists. The cursor of a page is the last name of the previous page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Query

from shared.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_LIMIT = 200
"""Largest number of items on a page."""

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="largest number of items")]
Cursor = Annotated[str | None, Query(max_length=256, description="`next` of the previous page")]


def page(
    names: Iterable[str], cursor: str | None, limit: int, read: Callable[[str], T | None]
) -> tuple[tuple[T, ...], str | None]:
    """Read one page of a list: the items after `cursor`.

    An item that cannot be read is left out.

    Args:
        names: sorted names of all items.
        cursor: name after which the page starts; None: the first page.
        limit: largest number of items.
        read: returns the item of a name, or None to leave the item out.

    Returns:
        The items, and the cursor of the next page, which may be empty; None after the last page.
    """
    items: list[T] = []
    last = None
    for name in names:
        if cursor is not None and name <= cursor:
            continue
        if len(items) == limit:
            return tuple(items), last
        last = name
        item = readable(name, read)
        if item is not None:
            items.append(item)
    return tuple(items), None


def readable(name: str, read: Callable[[str], T | None]) -> T | None:
    """Read an item of a list; None, and a line in the log, if its record cannot be read."""
    try:
        return read(name)
    except (ValueError, InputError):  # of pydantic, pyarrow or JSON
        log.exception("%s is left out of a list", name)
        return None
