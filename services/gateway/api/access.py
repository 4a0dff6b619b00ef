"""The callers of the API and their permissions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis.exceptions import RedisError

from services.gateway.api.limits import Quota
from services.gateway.api.paths import check_names
from services.gateway.api.problems import ProblemError, without_paths
from services.gateway.api.resources import Resources
from services.gateway.api.session import session_id
from services.gateway.api.tokens import Scope, TokenRecord
from services.gateway.api.watching import Watching
from shared.contracts.base import Request as JobRequest
from shared.contracts.jobs import JobStatus
from shared.contracts.tenants import LOCAL
from shared.jobs import Identity, Ledger, names, stage_of
from shared.models import pinned
from shared.storage import Store

STAGE_SCOPES: dict[str, Scope] = {
    "ingest": "annotate",
    "embed": "train",
    "cluster": "train",
    "train": "train",
    "deploy": "train",
    "evaluate": "train",
    "synthesize": "generate",
    "field": "generate",
    "image": "generate",
}
"""Stage → the scope that a submission of one of its jobs needs."""

bearer = HTTPBearer(auto_error=False, description="a token of this gateway")


def resources_of(request: Request) -> Resources:
    """Return the resources of the application that serves a request."""
    resources: Resources = request.app.state.resources
    return resources


def address_of(request: Request) -> str:
    """Return the address of the client that sent a request."""
    return request.client.host if request.client else "unknown"


def public(status: JobStatus) -> JobStatus:
    """Return a job's status without the paths of workers' disks."""
    hidden = {"failed": without_paths(status.failed), "result": without_paths(status.result)}
    return status.model_copy(update=hidden)


class Sender(NamedTuple):
    """Whom a request is from, by the id of a token and the name of its tenant.

    It is at `request.state.sender` as soon as it is known.
    """

    token: str
    tenant: str


@dataclass(frozen=True)
class Caller:
    """The sender of a request: their token, the gateway's resources, and their tenant's jobs.

    Attributes:
        token: the record of their token, or of their session.
        resources: the gateway's resources.
        ledger: their tenant's jobs.
        find: looks the token up again; it returns None once the token or session has ended.
    """

    token: TokenRecord
    resources: Resources
    ledger: Ledger
    find: Callable[[], TokenRecord | None]

    @property
    def store(self) -> Store:
        """The tenant's store."""
        return self.ledger.store

    def valid(self) -> bool:
        """Say whether the token or session is still valid."""
        return self.find() is not None

    def submit(
        self, request: JobRequest, identity: Identity | None = None, *, replace: bool = False
    ) -> str:
        """Record and queue a job, write an audit record, and return the job's id.

        `identity` is that of the job, if it is known already; `replace` takes the name of the
        result from another request. A request that is not in the store yet counts as uploaded.

        Raises:
            ProblemError: less than the request's size is left of the quota (429), or another stage
                has made what is to be replaced, and the token lacks the scope for that (403).
        """
        if self.token.tenant != LOCAL:
            check_names(request)
        request = pinned(self.store, request)
        identity = identity or self.ledger.identity(request)
        job = identity.job
        if replace:
            self._check_owners(request, job)
        known = self.store.exists(self.ledger.key(job, "request.json"))
        size = 0 if known else len(request.model_dump_json().encode())
        with self.spending("upload_bytes", size):
            self.resources.submit(self.ledger, request, identity, replace=replace)
        self.audit(f"submit {request.stage}", job=job, request=request.model_dump(mode="json"))
        return job

    def _check_owners(self, request: JobRequest, job: str) -> None:
        """Check that the token may make, too, what a request replaces and deletes."""
        owners = {names.owner(self.store, product) for product in request.products()}
        owners.update(names.Claims(self.store, request, job).earlier(replace=True))
        for other in sorted(other for other in owners if other):
            if (stage := stage_of(other)) != request.stage:
                self.require(STAGE_SCOPES.get(stage, "admin"), f"replacing what {other} has made")

    def require(self, scope: Scope, what: str) -> None:
        """Raise `ProblemError` unless the token has a scope; admin includes all (403).

        Args:
            scope: the scope.
            what: what it is needed for.
        """
        if {scope, "admin"} & set(self.token.scopes):
            return
        raise ProblemError(
            403,
            "forbidden",
            f"{what} needs the scope {scope!r}; token {self.token.name!r} has "
            f"{', '.join(self.token.scopes) or 'none'}",
            remedy="use another token, or have an administrator make one",
        )

    def status(self, job: str) -> JobStatus:
        """Compute a job's status, without paths of workers' disks. Raises as `Ledger.status`."""
        return public(self.ledger.status(job))

    def delete(self, product: str, job: str | None = None) -> None:
        """Delete what a job has made under a name, with the records of the job.

        Args:
            product: the name, such as 'datasets/<name>'.
            job: id of the job, if the name belongs to none: results of earlier versions do not.

        Raises:
            ProblemError: it is being made (409).
        """
        job = names.owner(self.store, product) or job or names.making(self.store, product)
        if job is not None and (self.ledger.is_open(job) or self._is_worked_on(job)):
            raise ProblemError(
                409,
                "in-the-making",
                f"{product} is being made",
                remedy=f"POST /v1/jobs/{job}/cancel, and try again in a few seconds",
                headers={"Retry-After": "5"},
            )
        if job is not None:
            self.ledger.delete(job)
        self.store.delete_prefix(f"{product}/")
        names.release(self.store, product)
        self.audit("delete", job=job, product=product)

    def _is_worked_on(self, job: str) -> bool:
        """Say whether a worker still holds a lease on a unit of a job; False if Redis is away."""
        with suppress(RedisError):
            leases = self.resources.redis.scan_iter(f"lease:{job}/*", count=1000)
            return next(leases, None) is not None
        return False

    def audit(self, action: str, **details: Any) -> None:
        """Write a record of an action, with its details, to the audit log."""
        self.resources.audit(self.token.tenant, self.token.name, action, details)

    @contextmanager
    def spending(self, quota: Quota, amount: int) -> Iterator[None]:
        """Count an amount against the tenant's daily quota; an error in the block gives it back.

        Args:
            quota: the quota.
            amount: number of images, or bytes.

        Raises:
            ProblemError: less than `amount` is left of the quota (429).
        """
        record = self.resources.tenant(self.token.tenant)
        limit = record.images_per_day if quota == "images" else record.upload_bytes_per_day
        with self.resources.limits.spending(self.token.tenant, quota, amount, limit):
            yield


def allowed(scope: Scope) -> Callable[..., Caller]:
    """Return a dependency that gives the caller of an operation if their token has `scope`.

    The scope admin includes all others. The dependency raises `ProblemError` if the request has
    no valid token (401), the token lacks the scope (403), or it makes too many requests (429).
    """

    def check(
        request: Request,
        resources: Annotated[Resources, Depends(resources_of)],
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Caller:
        if credentials:
            find = partial(resources.tokens.find, credentials.credentials)
        else:
            find = partial(resources.sessions.find, session_id(request) or "")
        token = find()
        if token is None and credentials:
            resources.wrong.count(address_of(request))
        if token is None:
            raise ProblemError(
                401,
                "unauthorized",
                "no token of this gateway was sent",
                remedy="send 'Authorization: Bearer <token>'; 'python -m services.gateway token' "
                "makes the first one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        resources.limits.count_request(token.id)
        request.state.sender = Sender(token.id, token.tenant)
        caller = Caller(token, resources, resources.ledger(token.tenant), find)
        caller.require(scope, "this")
        return caller

    return check


MayRead = Annotated[Caller, Depends(allowed("read"))]
MayAnnotate = Annotated[Caller, Depends(allowed("annotate"))]
MayGenerate = Annotated[Caller, Depends(allowed("generate"))]
MayTrain = Annotated[Caller, Depends(allowed("train"))]
MayAdminister = Annotated[Caller, Depends(allowed("admin"))]


async def _listening(request: Request, caller: MayRead) -> AsyncIterator[None]:
    watching: Watching = request.app.state.watching
    with watching.seat(caller.token.id):
        yield


Listening = Annotated[None, Depends(_listening)]
"""Counts the caller's open event streams; refuses more than `MAX_STREAMS` of a token (429)."""
