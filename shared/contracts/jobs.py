"""Jobs: what can be said of one, whatever its stage."""

from __future__ import annotations

from typing import Any, Literal

from shared.contracts.base import Contract

State = Literal["planning", "running", "done", "partial", "failed", "cancelled"]

ENDED = frozenset({"done", "partial", "failed", "cancelled"})
"""States that a job does not leave by itself."""


class JobStatus(Contract):
    """What a job's objects say of it."""

    job: str
    stage: str
    state: State
    phase: int
    phases: int
    done: int
    total: int
    failed: dict[str, str]
    result: dict[str, Any] | None
