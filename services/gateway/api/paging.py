"""Pages of long lists: a cursor is the last name of the page before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Query

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=200, description="items of a page at most")]
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
        found = read(name)
        last = name
        if found is not None:
            items.append(found)
    return tuple(items), None
