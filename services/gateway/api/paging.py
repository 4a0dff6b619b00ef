"""Pages of long lists. The cursor of a page is the last name of the page before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

MAX_LIMIT = 200
"""Items of the largest page."""

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="items of a page at most")]
Cursor = Annotated[str | None, Query(max_length=256, description="`next` of the page before")]


def page(
    names: Iterable[str], cursor: str | None, limit: int, read: Callable[[str], T | None]
) -> tuple[tuple[T, ...], str | None]:
    """Read the items after `cursor`, leaving out those that are None.

    Args:
        names: of all items, sorted.
        cursor: name after which the page starts.
        limit: items at most.
        read: makes an item of its name.

    Returns:
        The items, and the cursor of the next page if there may be one.
    """
    items: list[T] = []
    last = None
    for name in names:
        if cursor is not None and name <= cursor:
            continue
        if len(items) == limit:
            return tuple(items), last
        item = read(name)
        last = name
        if item is not None:
            items.append(item)
    return tuple(items), None
