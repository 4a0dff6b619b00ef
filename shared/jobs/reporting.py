"""Progress of running jobs, for display only."""

from __future__ import annotations

from typing import Any, ClassVar


class Reporter:
    """Receives the progress of jobs and ignores it; subclasses draw or send it.

    Attributes:
        tells: whether a person reads here which input was wrong; the log leaves it out then.
    """

    tells: ClassVar[bool] = False

    def phase(self, job: str, phase: int, phases: int, settled: int, total: int) -> None:
        """Receive how many of the `total` units of a phase are done or parked."""

    def unit(self, job: str, unit: str, done: int, total: int, note: str) -> None:
        """Receive how many of the `total` steps of a running unit are done."""

    def done(self, job: str, unit: str, seconds: float, result: dict[str, Any]) -> None:
        """Receive the duration of a finished unit, and its summary if it is a shard."""

    def failure(self, job: str, unit: str, error: str, parked: bool) -> None:
        """Receive an error of a unit, which is tried again unless it is parked."""
