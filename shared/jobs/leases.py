"""Leases: claims on units, so that two workers do not run the same one."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from shared.contracts.jobs import job_key
from shared.storage import ObjectNotFoundError, Store


class Leases(Protocol):
    """Exclusive, expiring claims on units."""

    def hold(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lease `<job>/<unit>` while the block runs; yield False if another has it."""

    def alive(self, name: str) -> bool:
        """Say whether some process holds the lease."""


class NoLeases:
    """Leases without a lease store: every claim succeeds, so a unit may run twice."""

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        yield True

    def alive(self, name: str) -> bool:
        return False


class StoreLeases:
    """Leases as objects in the store, for workers without Redis.

    The lease of a unit is `jobs/<job>/leases/<unit>/<number>`. It is put only if it is absent, and
    its holder puts it again by and by. A lease that has not changed for `seconds` has ended, and
    who saw that may put the next number, which one process alone succeeds in. Each process measures
    by its own clock how long it has seen no change, so clocks need not agree.

    An S3 server that does not know conditional writes may give a lease to two processes: then the
    unit runs twice, with the same bytes.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self._seen: dict[str, tuple[bytes, float]] = {}  # lease → content, and since when

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        numbers = self._numbers(name)
        if numbers and not self._ended(_key(name, numbers[-1])):
            yield False
            return
        own = numbers[-1] + 1 if numbers else 0
        key, token = _key(name, own), uuid.uuid4().hex
        if not self.store.create(key, token.encode()):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._renew, args=(key, token, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            with suppress(Exception):  # a lease that stays ends by itself
                for number in (*numbers, own):
                    self._seen.pop(_key(name, number), None)
                    self.store.delete(_key(name, number))

    def alive(self, name: str) -> bool:
        numbers = self._numbers(name)
        return bool(numbers) and not self._ended(_key(name, numbers[-1]))

    def _numbers(self, name: str) -> list[int]:
        entries = self.store.entries(_key(name, ""))
        return sorted(int(entry) for entry in entries if entry.isdecimal())

    def _ended(self, key: str) -> bool:
        """Say whether a lease has not changed for too long since this process first saw it so."""
        try:
            content = self.store.get(key)
        except ObjectNotFoundError:
            return False  # its unit has just ended
        before, since = self._seen.get(key, (b"", 0.0))
        if content != before:
            self._seen[key] = (content, time.monotonic())
            return False
        return time.monotonic() - since > self.seconds

    def _renew(self, key: str, token: str, stop: threading.Event) -> None:
        beats = 0
        while not stop.wait(self.seconds / 3):
            beats += 1
            with suppress(Exception):  # the next round tries again
                self.store.put(key, f"{token} {beats}".encode())


def _key(name: str, number: int | str) -> str:
    job, _, unit = name.partition("/")
    return job_key(job, f"leases/{unit}/{number}")
