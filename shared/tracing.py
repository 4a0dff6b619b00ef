"""Traces: one id from an HTTP request through the job, its units on any worker, and Triton.

A span is named by a `traceparent` (W3C Trace Context). A job keeps that of its submission in its
record, so that a lost queue loses no trace. The trace's id is in each line of a log in JSON. Only
with HTD_OTLP_ENDPOINT are the spans themselves sent to a collector.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from shared.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_VALID = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_current: ContextVar[str] = ContextVar("traceparent", default="")
_provider: TracerProvider | None = None
"""Sends spans; None: they are only named."""


def traceparent() -> str:
    """Return the `traceparent` of the current span; empty outside of all."""
    return _current.get()


def trace_id() -> str:
    """Return the id of the current trace, 32 hexadecimal digits; empty outside of all."""
    return _current.get()[3:35]


def new_traceparent() -> str:
    """Return the `traceparent` of the current span, or one that begins a trace."""
    return traceparent() or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


@contextmanager
def span(name: str, parent: str = "", **attributes: str) -> Iterator[str]:
    """Run the block as a span, and yield the span's `traceparent`.

    Args:
        name: what the block does.
        parent: `traceparent` of the span that caused it. Empty or malformed: the current span, or
            none, which begins a trace.
        attributes: more about the span.
    """
    before = parent if _VALID.fullmatch(parent) else traceparent()
    with _collected(name, before, attributes) as own:
        token = _current.set(own)
        try:
            yield own
        finally:
            _current.reset(token)


def configure_tracing(endpoint: str, service: str) -> None:
    """Send the spans of this process to a collector.

    Args:
        endpoint: http(s)://host:port of the collector (OTLP over HTTP); empty: send none.
        service: name of this process's service.

    Raises:
        MissingExtraError: the extra `tracing` is not installed.
    """
    global _provider
    if not endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("tracing", error) from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"heterotissue-{service}"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _provider = provider


@contextmanager
def _collected(name: str, parent: str, attributes: dict[str, str]) -> Iterator[str]:
    """Run the block as a span of OpenTelemetry, if spans are sent; yield its `traceparent`."""
    if _provider is None:
        before = parent or new_traceparent()
        yield f"{before[:36]}{secrets.token_hex(8)}{before[52:]}"
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator, carrier = TraceContextTextMapPropagator(), dict[str, str]()
    context = propagator.extract({"traceparent": parent} if parent else {})
    tracer = _provider.get_tracer("heterotissue")
    with tracer.start_as_current_span(name, context, attributes=attributes):
        propagator.inject(carrier)
        yield carrier["traceparent"]
