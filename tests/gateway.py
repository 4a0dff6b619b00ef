"""A gateway in this process, for tests of its logic: a directory store, and mostly no Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import ASGITransport, AsyncClient
from pydantic import SecretStr

from heterotissue.stages import load_stage
from services.gateway.api.resources import Resources
from services.gateway.api.tokens import Scope
from services.gateway.app import make_app
from shared.contracts.tenants import LOCAL
from shared.jobs import JobStatus, run_job
from shared.queue.tenants import ledger_of
from shared.settings import Settings
from tests.policies import Policed

KEY = "the key that signs tokens in tests"


class Gateway:
    """The application on a store below `folder`, and a client with an administrator's token."""

    def __init__(self, folder: Path, broker: str = "redis://127.0.0.1:1/0", **config: Any) -> None:
        self.config = Settings(
            store=str(folder),
            broker_url=SecretStr(broker),
            threads=1,
            device="cpu",
            gateway_requests_per_minute=1_000_000,
            gateway_key=SecretStr(KEY),
            **config,
        )
        self.app = make_app(self.config)
        self.resources: Resources = self.app.state.resources
        self.client = self.holding("admin")

    def holding(self, *scopes: Scope, tenant: str = LOCAL) -> TestClient:
        """A client with a new token."""
        token, _ = self.resources.tokens.create("tester", tenant, scopes)
        headers = {"Authorization": f"Bearer {token}"}
        return TestClient(self.app, headers=headers, raise_server_exceptions=False)

    def connected(self) -> AsyncClient:
        """A client with the administrator's token, for requests at the same time."""
        transport = ASGITransport(app=self.app)
        headers = dict(self.client.headers)
        return AsyncClient(transport=transport, base_url="http://h", headers=headers)

    def work(self, job: str) -> JobStatus:
        """Do a job that was submitted, as a worker would, with the worker's rights in the store."""
        ledger = ledger_of(self.config, job)
        stage = ledger.stage(job)
        prefix = f"tenants/{ledger.owner}/" if ledger.owner else ""
        ledger.store = Policed(ledger.store, stage, prefix)
        return run_job(ledger, load_stage(stage), job, config=self.config)
