"""Free space: whether a store has room for what a job is about to write."""

from __future__ import annotations

from shared.errors import InputError
from shared.storage.store import Store


def check_room(store: Store, needed: int, what: str, remedy: str = "") -> None:
    """Check that a store has room. Stores that do not know their free space are taken to have it.

    Args:
        store: the store.
        needed: bytes that will be written, at least.
        what: what will be written, such as '100 images of 256 px'.
        remedy: what else helps than more room or another store.

    Raises:
        InputError: there is less room.
    """
    free = store.free()
    if free is not None and needed > free:
        raise InputError(
            f"{what} would take about {_size(needed)}, but {store.url} has {_size(free)} free: "
            f"make room, use another store{', ' if remedy else ''}{remedy}"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
