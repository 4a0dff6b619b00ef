"""Serve the gateway's application with uvicorn."""

from __future__ import annotations

import logging
import sys

import uvicorn

from services.gateway.api.tokens import Tokens
from services.gateway.app import make_app
from services.gateway.connections import Connection
from services.gateway.signing import SignedRecords
from shared.contracts.tenants import LOCAL
from shared.settings import Settings
from shared.storage import open_store
from shared.tracing import configure_tracing

log = logging.getLogger(__name__)

GRACE_SECONDS = 5
"""Time that running responses have when the process stops, because event streams never end."""


def print_token(config: Settings) -> None:
    """Make a token of an administrator of the local tenant, and print it; logs never hold one.

    Raises:
        InputError: HTD_GATEWAY_KEY is not set, or the store's address or keys are wrong.
    """
    tokens = Tokens(SignedRecords.of(open_store(config=config), config))
    token, _ = tokens.create("admin", LOCAL, ("admin",))
    sys.stdout.write(f"{token}\n")


def serve(config: Settings) -> None:
    """Serve until the process is stopped.

    Raises:
        InputError: no broker or no HTD_GATEWAY_KEY is configured, or the store's address or keys
            are wrong.
        MissingExtraError: spans are to be sent, and the extra `tracing` is not installed.
    """
    configure_tracing(config.otlp_endpoint, "gateway")
    app = make_app(config)
    if not app.state.resources.tokens.all(LOCAL):
        log.warning("there is no token yet: 'python -m services.gateway token' makes one")
    uvicorn.run(
        app,
        host=config.gateway_host,
        port=config.gateway_port,
        log_config=None,
        server_header=False,
        proxy_headers=bool(config.gateway_proxies),
        forwarded_allow_ips=config.gateway_proxies,
        http=Connection,
        ws="none",
        limit_concurrency=config.gateway_connections,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
