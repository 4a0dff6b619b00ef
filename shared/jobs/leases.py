"""Leases: who is working on what, so that work is not doubled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Leases(Protocol):
    """Exclusive, expiring claims on names."""

    def hold(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lease while the block runs; yields False if somebody else has it."""

    def alive(self, name: str) -> bool:
        """Say whether anybody holds the lease."""


class NoLeases:
    """No lease store: work may be doubled, never lost."""

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        yield True

    def alive(self, name: str) -> bool:
        return False
