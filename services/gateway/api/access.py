"""The callers of the API and their permissions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.gateway.api.limits import Quota
from services.gateway.api.problems import ProblemError
from services.gateway.api.resources import Resources
from services.gateway.api.session import session_token
from services.gateway.api.tokens import Scope, TokenRecord
from shared.contracts.base import Request as JobRequest
from shared.jobs import Ledger
from shared.storage import ObjectStore

bearer = HTTPBearer(auto_error=False, description="a token of this gateway")


def resources_of(request: Request) -> Resources:
    """The resources that the app was made with."""
    resources: Resources = request.app.state.resources
    return resources


@dataclass(frozen=True)
class Caller:
    """The holder of a token, with the resources of their tenant."""

    token: TokenRecord
    resources: Resources
    ledger: Ledger

    @property
    def store(self) -> ObjectStore:
        """The tenant's store."""
        return self.ledger.store

    def submit(self, request: JobRequest) -> str:
        """Record and queue a job, and note it in the audit log."""
        job = self.resources.submit(self.ledger, request)
        self.audit(f"submit {request.stage}", job=job, request=request.model_dump(mode="json"))
        return job

    def reopen(self, job: str, shards: str) -> None:
        """Do some shards of a finished job again, and note it in the audit log.

        Args:
            job: id of the job.
            shards: prefix of the shards' ids.
        """
        self.ledger.reopen(job, shards)
        self.resources.start(self.ledger, job)
        self.audit("reopen", job=job, shards=shards)

    def audit(self, action: str, **what: Any) -> None:
        """Note an action in the audit log."""
        self.resources.audit(self.token.tenant, self.token.name, action, what)

    def spend(self, quota: Quota, amount: int) -> None:
        """Count an amount against the tenant's quota of the day.

        Raises:
            ProblemError: the quota is spent (429).
        """
        record = self.resources.tenant(self.token.tenant)
        limit = record.images_per_day if quota == "images" else record.upload_bytes_per_day
        self.resources.limits.spend(self.token.tenant, quota, amount, limit)


def allowed(scope: Scope) -> Callable[..., Caller]:
    """Make the dependency of an operation that needs a scope; the scope admin includes all."""

    def check(
        request: Request,
        resources: Annotated[Resources, Depends(resources_of)],
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Caller:
        given = credentials.credentials if credentials else session_token(request)
        token = resources.tokens.find(given) if given else None
        if token is None:
            raise ProblemError(
                401,
                "unauthorized",
                "no token of this gateway was sent",
                remedy="send 'Authorization: Bearer <token>'; 'htd gateway' prints the first one",
                headers={"WWW-Authenticate": "Bearer"},
            )
        resources.limits.count_request(token.id)
        if not {scope, "admin"} & set(token.scopes):
            raise ProblemError(
                403,
                "forbidden",
                f"this needs the scope {scope!r}; token {token.name!r} has "
                f"{', '.join(token.scopes) or 'none'}",
                remedy="use another token, or have an administrator make one",
            )
        return Caller(token, resources, resources.ledger(token.tenant))

    return check


MayRead = Annotated[Caller, Depends(allowed("read"))]
MayAnnotate = Annotated[Caller, Depends(allowed("annotate"))]
MayGenerate = Annotated[Caller, Depends(allowed("generate"))]
MayTrain = Annotated[Caller, Depends(allowed("train"))]
MayAdminister = Annotated[Caller, Depends(allowed("admin"))]
