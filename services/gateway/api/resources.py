"""The objects that all requests to a gateway share: settings, store, queue, tokens, limits."""

from __future__ import annotations

import json
import logging
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from services.gateway.api.limits import MAX_WRONG, MAX_WRONG_LOG_INS, Limits, WrongTokens
from services.gateway.api.session import Sessions
from services.gateway.api.tokens import Tokens
from services.gateway.signing import SignedRecords
from shared.contracts.base import Request
from shared.contracts.tenants import LOCAL, TenantRecord, tenant_key
from shared.jobs import Identity, Ledger
from shared.queue.redis_state import Progress, read_progress
from shared.queue.tenants import tenant_ledger
from shared.queue.worker import Dispatcher, QueueError
from shared.settings import Settings
from shared.storage import open_store, sha256

REDIS_SECONDS = 2.0

MAX_AUDITED_BYTES = 4096
"""Size of a field, such as a request, that is copied to the audit log."""

log = logging.getLogger(__name__)


class Resources:
    """The objects that all requests to a gateway share.

    Raises:
        InputError: no broker or no HTD_GATEWAY_KEY is configured, or the store's address or keys
            are wrong.
    """

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.root = open_store(config=config)
        self.dispatcher = Dispatcher(config)
        self.redis: Redis = Redis.from_url(
            config.broker_url.get_secret_value(),
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            decode_responses=True,
        )
        self.records = SignedRecords.of(self.root, config)
        self.tokens = Tokens(self.records)
        self.sessions = Sessions(self.records, self.tokens)
        self.wrong = WrongTokens(MAX_WRONG)
        self.wrong_log_ins = WrongTokens(MAX_WRONG_LOG_INS)
        self.limits = Limits(self.redis, config.gateway_requests_per_minute)
        self.ledger = lru_cache(maxsize=1024)(lambda tenant: tenant_ledger(config, tenant))

    def tenant(self, name: str) -> TenantRecord:
        """Return the record of a tenant's quotas; without a record, nothing is limited."""
        key = tenant_key(name)
        return self.root.get_model(key, TenantRecord) if self.root.exists(key) else TenantRecord()

    def submit(
        self, ledger: Ledger, request: Request, identity: Identity, *, replace: bool
    ) -> None:
        """Record a job and queue it, unless the job is open already.

        Args:
            ledger: ledger of the tenant.
            request: the request.
            identity: that of its job.
            replace: take the name of the result from a job of another request.

        Raises:
            InputError: an input of the request is not in the store.
            NameTakenError: the name of the result belongs to a job of another request.
        """
        job = identity.job
        if ledger.is_open(job):
            return
        ledger.submit(request, identity=identity, replace=replace)
        about = {"job": job, "tenant": ledger.owner or LOCAL}
        log.info("%s: submitted", job, extra=about)
        self.start(ledger, job)

    def start(self, ledger: Ledger, job: str) -> None:
        """Queue the runnable units of a job."""
        with suppress(QueueError):  # the reconciler queues it later
            self.dispatcher.start(ledger, job)

    def progress(self, job: str) -> dict[str, Progress]:
        """Return the progress reports of a job's units by unit; empty if Redis does not answer."""
        try:
            return read_progress(self.redis, job)
        except RedisError:
            return {}

    def audit(self, tenant: str, token: str, action: str, details: dict[str, Any]) -> None:
        """Write a record to the audit log.

        Args:
            tenant: name of the tenant.
            token: name of the token.
            action: the action, such as "upload".
            details: further fields of the record, as JSON. Of one with more than
                `MAX_AUDITED_BYTES`, the record has the size and the SHA-256.
        """
        now = datetime.now(UTC)
        record: dict[str, Any] = {
            "time": now.isoformat(),
            "tenant": tenant,
            "token": token,
            "action": action,
        }
        name = f"{now:%H%M%S.%f}-{uuid.uuid4().hex[:8]}"
        record |= {field: _brief(value) for field, value in details.items()}
        self.root.put_json(f"audit/{tenant}/{now:%Y-%m-%d}/{name}.json", record)


def _brief(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True).encode()
    if len(text) <= MAX_AUDITED_BYTES:
        return value
    return {"bytes": len(text), "sha256": sha256(text)}
