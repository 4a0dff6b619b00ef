"""The starts and errors of a unit, which decide when it is given up."""

from __future__ import annotations

import platform
import traceback
from contextlib import suppress

from shared.contracts.jobs import Attempts, UnitError
from shared.errors import InputError
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store


class Tries:
    """The record of a unit's starts and errors.

    Args:
        store, key: where it lies.
    """

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key

    def read(self) -> Attempts:
        """Return the starts and errors so far."""
        try:
            return self.store.get_model(self.key, Attempts)
        except (ObjectNotFoundError, DamagedObjectError):  # an unreadable count must not stop work
            return Attempts()

    def start(self, most: int) -> Attempts:
        """Count a start. Raises `InputError` if there were `most` of them."""
        before = self.read()
        if before.starts >= most:
            raise InputError(
                f"started {before.starts} times without an end or an error: its worker was "
                "killed each time (out of memory?), or what it reads or makes was damaged each "
                "time; give it more memory or smaller shards, or look at the store"
            )
        counted = before.model_copy(update={"starts": before.starts + 1})
        self.store.put_json(self.key, counted)
        return counted

    def take_back(self) -> None:
        """Count the last start no longer."""
        with suppress(Exception):  # the store may be away
            before = self.read()
            fewer = before.model_copy(update={"starts": max(0, before.starts - 1)})
            self.store.put_json(self.key, fewer)

    def add(self, error: Exception) -> tuple[UnitError, ...]:
        """Add an error, and return all."""
        before = self.read()
        own = UnitError(
            error=str(error) or type(error).__name__,
            traceback="".join(traceback.format_exception(error)),
            host=platform.node(),
        )
        errors = (*before.errors, own)
        self.store.put_json(self.key, before.model_copy(update={"errors": errors}))
        return errors
