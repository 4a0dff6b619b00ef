"""The records of what is published of a model."""

from __future__ import annotations

from contextlib import suppress

from shared.contracts.serving import ServedVersion, published_prefix
from shared.storage import ObjectNotFoundError, ObjectStore


def served(store: ObjectStore, model: str) -> list[ServedVersion]:
    """What is published of a model, by number; the last is in use."""
    found = []
    for key in store.list(published_prefix(model)):
        with suppress(ObjectNotFoundError):  # taken back meanwhile
            found.append(store.get_model(key, ServedVersion))
    return sorted(found, key=lambda each: each.number)
