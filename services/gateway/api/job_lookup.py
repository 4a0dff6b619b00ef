"""Check that a job belongs to the caller's tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from services.gateway.api.access import Caller
from services.gateway.api.problems import absent

JobId = Annotated[
    str, Path(pattern=r"^([a-z0-9-]+\.)?[a-z]+-[0-9a-f]{16}$", description="id of the job")
]


def check_job(caller: Caller, job: str) -> None:
    """Check that the caller's tenant has a job.

    Raises:
        ProblemError: there is no such job (404).
    """
    if not caller.store.exists(caller.ledger.key(job, "request.json")):
        raise absent("job", job, "GET /v1/jobs lists those there are")
