"""Jobs: the records of a job in the store, and its status.

names/<product>.json            Claim, such as names/datasets/<name>.json
jobs/<id>/request.json          JobRecord
jobs/<id>/plan.json             PlanRecord (shared.jobs.plan)
jobs/<id>/attempts/<unit>.json  Attempts
jobs/<id>/done/<unit>.json      Marker
jobs/<id>/failed/<unit>.json    ParkedUnit
jobs/<id>/leases/<unit>/<n>     a lease, where there is no Redis (shared.jobs.leases)
jobs/<id>/runner.json           the process that runs the job, if one alone does
jobs/<id>/result.json           JobResult
open-jobs/<id>                  number of the submission; present until there is a result

Of a plan of more than a thousand shards, each segment has, by its phase and its number there:

jobs/<id>/plan/<segment>.ndjson           its shards
jobs/<id>/done/<segment>/<unit>.json      Marker
jobs/<id>/done/<segment>.ndjson           all its markers, once all its shards are done
jobs/<id>/done/<segment>.<parked>.ndjson  the same, if some of them are parked
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shared.contracts.base import Contract

State = Literal["planning", "running", "done", "partial", "failed", "cancelled"]

ENDED = frozenset({"done", "partial", "failed", "cancelled"})
"""States of a job that has ended."""

WITHOUT_RESULT = frozenset({"failed", "cancelled"})
"""States of a job that has ended without a result."""


class JobRecord(Contract):
    """A job as it was submitted; the request is plain JSON of its stage's contract."""

    stage: str
    request: dict[str, Any]
    submission: int = Field(
        0,
        description="time of the submission, ns: a worker that began under an earlier one must not "
        "write anything more",
    )
    version: str = Field("", description="version of this program")
    trace: str = Field(
        "", description="traceparent of the span that submitted it, such as an HTTP request's"
    )
    inputs: dict[str, str] = Field(
        {},
        description="SHA-256 of the records that the request reads, as they were when it was "
        "submitted: key → digest",
    )
    products: tuple[str, ...] = Field(
        (), description="names in the store that the result takes; `names/` says whose they are"
    )
    earlier: str | None = Field(
        None, description="job whose names this one took over; its unchanged shards are kept"
    )


class Claim(Contract):
    """The job that a name in the store belongs to."""

    job: str


class UnitError(Contract):
    """One error of a unit."""

    error: str
    traceback: str = ""
    host: str = ""


class Attempts(Contract):
    """The starts and errors of a unit so far."""

    starts: int = 0
    errors: tuple[UnitError, ...] = ()


class Marker(Contract):
    """The mark of a finished unit, written after its outputs."""

    outputs: dict[str, str] = Field(description="key → SHA-256 of the object")
    tags: dict[str, str] = Field({}, description="key → tag of the object when it was put")
    removed: tuple[str, ...] = Field((), description="keys of other units' objects that it deleted")
    result: dict[str, Any] = Field(
        default_factory=dict, description="summary of the shard; empty for the plan"
    )
    seconds: float = 0.0
    host: str = ""
    peak_memory_mb: int = 0


class ParkedUnit(Contract):
    """The last error of a unit that was given up."""

    error: str
    traceback: str = ""
    attempts: int = 0
    wrong_input: bool = Field(False, description="whether the input is at fault, so a retry fails")


class JobResult(Contract):
    """The final state and result of a job."""

    submission: int = Field(
        0, description="the submission that ended so; 0: by an earlier version of this program"
    )
    state: State
    result: dict[str, Any] | None = Field(description="result of the stage; None without one")
    failed: dict[str, str] = Field(description="parked unit → its error")
    outputs: dict[str, str] = Field(
        default_factory=dict, description="key → SHA-256 of each object that `finish` wrote"
    )
    removed: tuple[str, ...] = Field((), description="keys of objects that `finish` deleted")


class JobStatus(Contract):
    """The state and progress of a job, computed from its objects."""

    job: str
    stage: str
    state: State
    phase: int = Field(description="number of the current phase, from 0")
    phases: int = Field(description="number of phases")
    done: int = Field(description="number of finished shards")
    total: int = Field(description="number of shards")
    failed: dict[str, str] = Field(description="parked unit → its error")
    result: dict[str, Any] | None


def job_key(job: str, name: str) -> str:
    """Return the key of an object of a job."""
    return f"jobs/{job}/{name}"
