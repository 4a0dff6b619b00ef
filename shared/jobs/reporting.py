"""Progress of running jobs, for display only."""

from __future__ import annotations

from typing import Any


class Reporter:
    """Receives the progress of jobs and ignores it; subclasses draw or send it."""

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        """Receive the number of a phase's `total` units that are done or parked."""

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        """Receive the number of a running unit's `total` steps that are done."""

    def done(self, job: str, unit: str, seconds: float, result: dict[str, Any]) -> None:
        """Receive the end of a unit; `result` is the summary of a shard, else empty."""

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        """Receive an error of a unit, which is tried again unless it is parked."""
