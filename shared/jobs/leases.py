"""Leases: claims on units, so that two workers do not run the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Leases(Protocol):
    """Exclusive, expiring claims on names."""

    def hold(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lease while the block runs; yield False if another process has it."""

    def alive(self, name: str) -> bool:
        """Say whether some process holds the lease."""


class NoLeases:
    """Leases without a lease store: every claim succeeds, so a unit may run twice."""

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        yield True

    def alive(self, name: str) -> bool:
        return False
