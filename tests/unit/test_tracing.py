"""One trace from an HTTP request through a job's units on a worker."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared import tracing
from shared.jobs import Ledger, run_job
from shared.logging import JsonFormatter
from shared.settings import Settings
from shared.storage import DirectoryStore
from shared.tracing import configure_tracing, span, trace_id, traceparent
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.toy import ToyRequest, ToyStage

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process logs as JSON."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


def read(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_request_and_the_units_of_its_job_log_one_trace(
    tmp_path: Path, lines: io.StringIO
) -> None:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    gateway = Gateway(tmp_path)
    body = {"dataset": "d", "model": "toy", "images": 1, "steps": 1}
    answer = gateway.client.post("/v1/datasets", json=body, headers={"traceparent": HEADER})
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    assert gateway.work(job).state == "done"
    own = [line for line in read(lines) if line.get("job") == job]
    assert [(line["logger"], line.get("unit")) for line in own] == [
        ("services.gateway.api.resources", None), ("shared.jobs.execution", "plan"),
        ("shared.jobs.execution", "shard-000000"), ("shared.jobs.execution", "finish"),
    ]  # fmt: skip
    assert {line["trace"] for line in own} == {TRACE}
    assert trace_id() == "", "the process is in no trace afterwards"


@pytest.mark.parametrize(
    "header", ["", "no trace", HEADER.upper(), HEADER.replace(TRACE, 32 * "0")]
)
def test_a_request_without_a_trace_begins_one(header: str) -> None:
    with span("one", header) as one, span("inner") as inner:
        assert inner[3:35] == one[3:35] == trace_id()
        assert inner[36:52] != one[36:52], "a span of its own"
        assert inner == traceparent()
    with span("other", header):
        assert trace_id() not in ("", one[3:35], 32 * "0")


def test_a_job_that_is_submitted_again_begins_a_trace(tmp_path: Path, lines: io.StringIO) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    request = ToyRequest(parts=1, faults={"square-0": "input"})
    config = Settings(threads=1, device="cpu")
    for _ in range(2):
        run_job(ledger, ToyStage(), ledger.submit(request), config=config)
    traces = [line["trace"] for line in read(lines)]
    assert len(traces[0]) == 32
    assert len(set(traces)) == 2, "one for each submission"


def test_spans_are_sent_to_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sent: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(body)
            sent.extend(
                item
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for item in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    monkeypatch.setattr(tracing, "_provider", None)
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        configure_tracing(f"http://127.0.0.1:{server.server_port}", "toy")
        ledger = Ledger(DirectoryStore(tmp_path))
        with span("POST /v1/datasets", HEADER):
            job = ledger.submit(ToyRequest(parts=1))
        run_job(ledger, ToyStage(), job, config=Settings(threads=1, device="cpu"))
        assert tracing._provider is not None
        tracing._provider.shutdown()
        server.shutdown()
    request, *units = sorted(sent, key=lambda item: item.start_time_unix_nano)
    assert request.name == "POST /v1/datasets"
    assert {item.trace_id.hex() for item in sent} == {TRACE}
    assert {item.parent_span_id for item in units} == {request.span_id}
    names = [{a.key: a.value.string_value for a in item.attributes} for item in units]
    assert [each["unit"] for each in names] == ["plan", "square-0", "sum-a", "sum-b", "finish"]
    assert {(each["job"], each["tenant"]) for each in names} == {(job, "local")}
