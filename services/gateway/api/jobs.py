"""/v1/jobs: jobs of all stages. /v1/<stage>: the operations that submit them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.gateway.api.access import (
    STAGE_SCOPES,
    Caller,
    Listening,
    MayRead,
    MayTrain,
    allowed,
    public,
)
from services.gateway.api.idempotency import IdempotencyKey, claimed
from services.gateway.api.job_lookup import JobId, check_job
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.paths import check_paths
from services.gateway.api.problems import documented
from services.gateway.api.watching import Watching
from shared.contracts.base import Request as JobRequest
from shared.contracts.cluster import ClusterRequest
from shared.contracts.deploy import DeployRequest
from shared.contracts.embed import EmbedRequest
from shared.contracts.evaluate import EvaluateRequest
from shared.contracts.gateway import JobPage
from shared.contracts.ingest import IngestRequest
from shared.contracts.jobs import JobStatus
from shared.contracts.requests import REQUESTS
from shared.contracts.train import TrainRequest
from shared.jobs import stage_of

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=JsonRoute)


@dataclass(frozen=True)
class OwnJob:
    """A job of the caller's tenant."""

    caller: Caller
    id: str

    def status(self) -> JobStatus:
        """Compute the status of the job."""
        return self.caller.status(self.id)


def _job_to_read(caller: MayRead, job: JobId) -> OwnJob:
    check_job(caller, job)
    return OwnJob(caller, job)


def _job_to_change(caller: MayTrain, job: JobId) -> OwnJob:
    check_job(caller, job)
    return OwnJob(caller, job)


Readable = Annotated[OwnJob, Depends(_job_to_read)]
Changeable = Annotated[OwnJob, Depends(_job_to_change)]


@router.get("/jobs")
def list_jobs(
    caller: MayRead, limit: Limit = 50, cursor: Cursor = None, stage: str | None = None
) -> JobPage:
    """List jobs by id; an id starts with the stage."""

    def read(job: str) -> JobStatus | None:
        found = caller.ledger.find(job) if stage in {None, stage_of(job)} else None
        return public(found) if found else None

    items, following = page(caller.ledger.jobs(), cursor, limit, read)
    return JobPage(items=items, next=following)


@router.get("/jobs/{job}", responses=documented(404))
def show_job(own: Readable) -> JobStatus:
    """Return a job's status."""
    return own.status()


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, responses=documented(404))
async def watch_job(
    own: Readable, _: Listening, request: Request
) -> AsyncIterator[ServerSentEvent]:
    """Stream a job's status: an event `status` for every change, until the job ends."""
    watching: Watching = request.app.state.watching
    async for status in watching.follow(f"job/{own.id}", own.status, own.caller.valid):
        yield ServerSentEvent(event="status", data=status)


@router.post("/jobs/{job}/cancel", responses=documented(404))
def cancel_job(own: Changeable) -> JobStatus:
    """Cancel a job; its finished shards stay. An ended job does not change."""
    own.caller.ledger.cancel(own.id)
    own.caller.audit("cancel", job=own.id)
    return own.status()


@router.post("/jobs/{job}/retry", status_code=202, responses=documented(404))
def retry_job(own: Changeable) -> JobStatus:
    """Run a job's failed and cancelled shards again; a training continues from its checkpoint."""
    ledger = own.caller.ledger
    kind = REQUESTS[ledger.stage(own.id)]
    job = own.caller.submit(kind.model_validate(ledger.request(own.id)))
    return own.caller.status(job)


def submit(
    caller: Caller, request: JobRequest, response: Response, key: str | None, *, replace: bool
) -> JobStatus:
    """Record and queue a job, at most once for an Idempotency-Key, and return its status."""
    check_paths(request, caller.resources.config.networks)
    with claimed(caller.store, key, request) as claim:
        job = claim.job = claim.job or caller.submit(request, replace=replace)
    response.headers["Location"] = f"/v1/jobs/{job}"
    return caller.status(job)


Replace = Annotated[
    bool, Query(description="replace a result of another request that has the same name")
]

SUBMISSIONS: dict[type[JobRequest], str] = {
    IngestRequest: "Ingest slides of the store as a cohort.",
    EmbedRequest: "Embed a cohort's patches.",
    ClusterRequest: "Find tissue types in a cohort's features.",
    TrainRequest: "Train and publish a model version.",
    DeployRequest: "Serve a model version on Triton. To go back, deploy an older version again.",
    EvaluateRequest: "Measure a dataset against held-out real regions.",
}
"""Type of each request that has an operation → description of the operation."""


def _submitter(kind: type[JobRequest]) -> Callable[..., JobStatus]:
    """Make the operation that accepts requests of type `kind`."""

    def submit_request(
        request: JobRequest,
        caller: Caller,
        response: Response,
        key: IdempotencyKey = None,
        replace: Replace = False,
    ) -> JobStatus:
        return submit(caller, request, response, key, replace=replace)

    caller = Annotated[Caller, Depends(allowed(STAGE_SCOPES[kind.stage]))]
    submit_request.__annotations__ |= {"request": kind, "caller": caller}
    return submit_request


for _kind, _description in SUBMISSIONS.items():
    router.post(
        f"/{_kind.stage}",
        status_code=202,
        responses=documented(409),
        name=f"submit_{_kind.stage}",
        description=_description,
    )(_submitter(_kind))
