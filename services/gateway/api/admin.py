"""/v1/tokens, /v1/tenants, /v1/audit: tokens, tenants and the audit log, for administrators."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import TypeAdapter

from services.gateway.api.access import Caller, MayAdminister
from services.gateway.api.json_bodies import JsonRoute
from services.gateway.api.paging import Cursor, Limit, page
from services.gateway.api.problems import ProblemError, documented
from services.gateway.api.tokens import Scope, TokenRecord
from shared.contracts.base import Contract, Name
from shared.contracts.tenants import LOCAL, Tenant, TenantRecord, tenant_key
from shared.queue.tenants import tenants

_AUDITED: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])

router = APIRouter(prefix="/v1", tags=["administration"], route_class=JsonRoute)

TokenId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="`id` of the token")]


class TokenBody(Contract):
    """The name, scopes and tenant of a token to make."""

    name: Name
    scopes: tuple[Scope, ...]
    tenant: Tenant | None = None
    """Default: the caller's tenant. Only administrators of the local tenant may name another."""


class NewToken(Contract):
    """A new token and its record; no later answer contains `token`."""

    token: str
    record: TokenRecord


class NamedTenant(Contract):
    """A tenant's name and its quotas."""

    tenant: str
    record: TenantRecord


class AuditPage(Contract):
    """A page of a day's audit records, in the order of their times."""

    items: tuple[dict[str, Any], ...]
    next: str | None


def _check_local(caller: Caller) -> None:
    if caller.token.tenant != LOCAL:
        raise ProblemError(
            403,
            "forbidden",
            f"only tenant {LOCAL!r} manages tenants; this token is of tenant "
            f"{caller.token.tenant!r}",
        )


@router.post("/tokens", status_code=201)
def create_token(body: TokenBody, caller: MayAdminister) -> NewToken:
    """Make a token; only this answer contains it."""
    tenant = body.tenant or caller.token.tenant
    if tenant != caller.token.tenant:
        _check_local(caller)
    if tenant not in tenants(caller.resources.root):
        raise ProblemError(
            422,
            "invalid",
            f"there is no tenant {tenant!r}",
            remedy=f"PUT /v1/tenants/{tenant} first",
            pointer="#/tenant",
        )
    token, record = caller.resources.tokens.create(body.name, tenant, body.scopes)
    caller.audit("create token", id=record.id, name=body.name, scopes=list(body.scopes))
    return NewToken(token=token, record=record)


@router.get("/tokens")
def list_tokens(caller: MayAdminister) -> list[TokenRecord]:
    """List the records of the tenant's tokens; the local tenant sees those of all tenants."""
    tenant = caller.token.tenant
    return caller.resources.tokens.all(None if tenant == LOCAL else tenant)


@router.delete("/tokens/{token}", status_code=204, responses=documented(404))
def revoke_token(token: TokenId, caller: MayAdminister) -> None:
    """Revoke a token; other gateways of this store may accept it for some seconds more."""
    for record in list_tokens(caller):
        if record.id == token:
            caller.resources.tokens.revoke(record)
            caller.audit("revoke token", id=token, name=record.name)
            return
    raise ProblemError(404, "no-token", f"there is no token {token!r}")


@router.get("/tenants")
def list_tenants(caller: MayAdminister) -> list[NamedTenant]:
    """List tenants with their quotas."""
    _check_local(caller)
    resources = caller.resources
    return [
        NamedTenant(tenant=name, record=resources.tenant(name)) for name in tenants(resources.root)
    ]


@router.put("/tenants/{tenant}")
def put_tenant(tenant: Tenant, body: TenantRecord, caller: MayAdminister) -> NamedTenant:
    """Make a tenant, or change its quotas. Tenants do not see each other's objects."""
    _check_local(caller)
    caller.resources.root.put_json(tenant_key(tenant), body)
    caller.audit("put tenant", name=tenant, record=body.model_dump())
    return NamedTenant(tenant=tenant, record=body)


@router.get("/audit")
def list_audit(
    caller: MayAdminister,
    limit: Limit = 50,
    cursor: Cursor = None,
    day: Annotated[date | None, Query(description="UTC; default: today")] = None,
) -> AuditPage:
    """List the audit records of one day in the caller's tenant: time, token, action, inputs."""
    chosen = day or datetime.now(UTC).date()
    keys = caller.resources.root.list(f"audit/{caller.token.tenant}/{chosen:%Y-%m-%d}/")
    root = caller.resources.root
    items, following = page(keys, cursor, limit, lambda key: _AUDITED.validate_json(root.get(key)))
    return AuditPage(items=items, next=following)
