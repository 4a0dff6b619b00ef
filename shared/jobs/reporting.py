"""Progress of running jobs, for display only."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Receives the progress of jobs and ignores it; subclasses draw or send it."""

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        """`settled` of a phase's `total` units are done or parked."""

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        """A running unit has finished `done` of `total` steps."""

    def done(self, job: str, unit: str, seconds: float, result: dict[str, Any]) -> None:
        """A unit is done after `seconds`; `result` is the summary of a shard, else empty."""

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        """A unit raised an error; it is tried again unless it is parked."""
