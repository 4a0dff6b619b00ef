"""Progress of running jobs, only for looking at."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Hears how a job goes. This one keeps quiet; subclasses draw or publish."""

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        """`settled` of a phase's `total` units are done or parked."""

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        """A running unit has come to `done` of `total`."""

    def done(self, job: str, unit: str, seconds: float, result: dict[str, Any]) -> None:
        """A unit has been done, in so many seconds; `result` is the stage's, of a shard."""

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        """A unit raised an error; it will be tried again unless it is parked."""
