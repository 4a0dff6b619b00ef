"""Serve the HTTP API and the pages: `python -m services.gateway`."""

from services.gateway.server import serve
from shared.logging import configure_logging
from shared.settings import settings

configure_logging(settings().log_level)
serve(settings())
