"""HEAD and the methods that a path takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from services.gateway.api import datasets
from tests.gateway import Gateway
from tests.unit.test_gateway_datasets import BODY


def test_head_is_answered_as_get_without_the_body(gateway: Gateway) -> None:
    gateway.work(gateway.client.post("/v1/datasets", json=BODY).json()["job"])
    shard = "/v1/datasets/d/files/shards/000000.tar"
    for place, status in (
        ("/healthz", 200), ("/login", 200), ("/static/pages.css", 200), ("/v1/datasets", 200),
        ("/v1/datasets/none", 404), ("/v1/datasets/d/preview", 200), (shard, 200),
    ):  # fmt: skip
        headers = gateway.client.get(place).headers
        answer = gateway.client.head(place)
        assert (answer.status_code, answer.content) == (status, b""), place
        assert answer.headers["Content-Length"] == headers["Content-Length"]
    part = gateway.client.head(shard, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["Content-Length"]) == (206, "10")
    assert TestClient(gateway.app).head(shard).status_code == 401
    assert gateway.holding("read", tenant="other").head(shard).status_code == 404
    figures = gateway.client.get("/metrics").text
    assert 'method="HEAD",route="/healthz",status="200"' in figures


def test_head_reads_no_stream(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    events = gateway.client.head(f"/v1/jobs/{job}/events")  # else it would wait for the job's end
    assert events.status_code == 200
    gateway.work(job)
    sent: list[bytes] = []

    def endless(*_: object) -> Iterator[bytes]:
        while True:
            sent.append(b"x")
            yield b"x"

    monkeypatch.setattr(datasets, "tar_stream", endless)
    assert gateway.client.head("/v1/datasets/d/archive").status_code == 200
    assert len(sent) < 3


def test_a_refused_method_names_all_that_a_path_takes(gateway: Gateway) -> None:
    answer = gateway.client.put("/v1/datasets")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "HEAD, GET, POST")
    assert gateway.client.delete("/healthz").headers["Allow"] == "HEAD, GET"
