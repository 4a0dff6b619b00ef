"""Gateway: what its HTTP API answers; requests are those of the services.

datasets/<id>/submission.json   Submission
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from shared.contracts.base import Contract
from shared.contracts.synthesize import DatasetRequest, dataset_key

JobState = Literal["planning", "running", "done", "partial", "failed", "cancelled"]

ENDED = frozenset({"done", "partial", "failed", "cancelled"})
"""States that a job does not leave by itself."""


class Submission(Contract):
    """Which job makes a dataset, and who asked for it."""

    job: str
    token: str | None = Field(None, description="name of the token; None: made without a gateway")
    created: datetime | None = None
    request: DatasetRequest


class DatasetStatus(Contract):
    """A dataset, made or in the making."""

    dataset: str
    model: str = Field(description="<name>/<version>")
    job: str
    state: JobState
    images: int = Field(description="that were asked for")
    made: int = Field(description="images made so far; those refused as copies are not among them")
    shards: int
    shards_done: int
    failed: dict[str, str] = Field(description="shard → why; at most 100")
    images_per_second: float | None = Field(description="of all workers; None where none is busy")
    seconds_left: float | None
    created: datetime | None
    result: dict[str, Any] | None = Field(description="what the job says in the end")


class DatasetPage(Contract):
    """Some of the datasets, by name."""

    items: tuple[DatasetStatus, ...]
    next: str | None = Field(description="`cursor` of the next page")


class ShardLink(Contract):
    """Where a finished shard can be downloaded."""

    shard: str
    url: str = Field(description="absolute: presigned, no token needed; else relative, with token")
    bytes: int
    sha256: str


class ShardPage(Contract):
    """Some of a dataset's shards, in order."""

    items: tuple[ShardLink, ...]
    next: str | None = Field(description="`cursor` of the next page")


class JobSummary(Contract):
    """A job as its objects show it."""

    job: str
    stage: str
    state: JobState
    phase: int
    phases: int
    done: int
    total: int
    failed: dict[str, str]
    result: dict[str, Any] | None


class JobPage(Contract):
    """Some of the jobs, by id."""

    items: tuple[JobSummary, ...]
    next: str | None = Field(description="`cursor` of the next page")


def submission_key(dataset: str) -> str:
    """Key of a dataset's submission."""
    return dataset_key(dataset, "submission.json")
