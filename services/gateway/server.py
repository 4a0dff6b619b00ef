"""Serve the gateway's application with uvicorn."""

from __future__ import annotations

import sys

import uvicorn

from services.gateway.app import make_app
from shared.settings import Settings

GRACE_SECONDS = 5
"""Time that running responses have when the process stops, because event streams never end."""


def serve(config: Settings) -> None:
    """Serve until the process is stopped.

    If the store has no token yet, create the administrator's token and print it.

    Raises:
        InputError: no broker is configured, or the store's address or keys are wrong.
    """
    app = make_app(config)
    token = app.state.resources.tokens.create_first()
    if token is not None:
        sys.stdout.write(
            f"The administrator's token, shown this once:\n{token}\n"
            "Use it to make tokens with fewer rights: POST /v1/tokens\n"
        )
        sys.stdout.flush()
    uvicorn.run(
        app,
        host=config.gateway_host,
        port=config.gateway_port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
