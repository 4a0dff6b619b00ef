"""/v1/jobs: jobs of every stage; and a way to submit a request of each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.gateway.api.access import Annotator, Caller, Reader, Trainer
from services.gateway.api.idempotency import IdempotencyKey, check_key, keep_key
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.paths import check_paths
from services.gateway.api.problems import ProblemError, documented
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

router = APIRouter(prefix="/v1", tags=["jobs"])

JobId = Annotated[
    str, Path(pattern=r"^([a-z0-9-]+\.)?[a-z]+-[0-9a-f]{16}$", description="id of the job")
]


def _job(caller: Reader, job: JobId) -> tuple[Caller, str]:
    return known_job(caller, job)


def _own_job(caller: Trainer, job: JobId) -> tuple[Caller, str]:
    return known_job(caller, job)


def known_job(caller: Caller, job: str) -> tuple[Caller, str]:
    """Check that the caller has such a job. Raises `ProblemError` (404)."""
    if not caller.store.exists(caller.ledger.key(job, "request.json")):
        raise ProblemError(
            404, "no-job", f"there is no job {job!r}", remedy="GET /v1/jobs lists those there are"
        )
    return caller, job


Readable = Annotated[tuple[Caller, str], Depends(_job)]
Changeable = Annotated[tuple[Caller, str], Depends(_own_job)]


@router.get("/jobs")
def list_jobs(
    caller: Reader, limit: Limit = 50, cursor: Cursor = None, stage: str | None = None
) -> JobPage:
    """List jobs by id; an id starts with the stage."""

    def read(job: str) -> JobStatus | None:
        return caller.ledger.find(job) if stage in {None, stage_of(job)} else None

    items, following = page(caller.ledger.jobs(), cursor, limit, read)
    return JobPage(items=items, next=following)


@router.get("/jobs/{job}", responses=documented(404))
def show_job(found: Readable) -> JobStatus:
    """Say how a job is."""
    return found[0].ledger.status(found[1])


@router.get("/jobs/{job}/events", response_class=EventSourceResponse, responses=documented(404))
async def watch_job(found: Readable, request: Request) -> AsyncIterator[ServerSentEvent]:
    """Follow a job live: an event `status` for every change, until it ends."""
    watching: Watching = request.app.state.watching
    caller, job = found
    async for status in watching.follow(f"job/{job}", lambda: caller.ledger.status(job)):
        yield ServerSentEvent(event="status", data=status)


@router.post("/jobs/{job}/cancel", responses=documented(404))
def cancel_job(found: Changeable) -> JobStatus:
    """Stop a job; what has ended is left as it is."""
    caller, job = found
    caller.ledger.cancel(job)
    caller.audit("cancel", job=job)
    return caller.ledger.status(job)


@router.post("/jobs/{job}/retry", status_code=202, responses=documented(404))
def retry_job(found: Changeable) -> JobStatus:
    """Try again what failed or was cancelled; a training goes on from its last checkpoint."""
    caller, job = found
    kind = REQUESTS[caller.ledger.stage(job)]
    again = caller.submit(kind.model_validate(caller.ledger.request(job)))
    return caller.ledger.status(again)


def submit(caller: Caller, request: JobRequest, response: Response, key: str | None) -> JobStatus:
    """Record and queue a job, once for every Idempotency-Key."""
    check_paths(request)
    job = check_key(caller.store, key, request)
    if job is None:
        job = caller.submit(request)
        keep_key(caller.store, key, request, job)
    response.headers["Location"] = f"/v1/jobs/{job}"
    return caller.ledger.status(job)


@router.post("/ingest", status_code=202)
def submit_ingest(
    request: IngestRequest, caller: Annotator, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Ingest slides of the store as a cohort."""
    return submit(caller, request, response, key)


@router.post("/embed", status_code=202)
def submit_embed(
    request: EmbedRequest, caller: Trainer, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Embed a cohort's patches."""
    return submit(caller, request, response, key)


@router.post("/cluster", status_code=202)
def submit_cluster(
    request: ClusterRequest, caller: Trainer, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Find tissue types in a cohort's features."""
    return submit(caller, request, response, key)


@router.post("/train", status_code=202)
def submit_train(
    request: TrainRequest, caller: Trainer, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Train and publish a model version."""
    return submit(caller, request, response, key)


@router.post("/deploy", status_code=202)
def submit_deploy(
    request: DeployRequest, caller: Trainer, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Serve a model version on Triton; an older one again is the way back."""
    return submit(caller, request, response, key)


@router.post("/evaluate", status_code=202)
def submit_evaluate(
    request: EvaluateRequest, caller: Trainer, response: Response, key: IdempotencyKey = None
) -> JobStatus:
    """Measure a dataset against held-out real regions."""
    return submit(caller, request, response, key)
