"""A record that nobody can read is the problem of its thing alone: lists and pages go on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.contracts.jobs import job_key
from shared.contracts.synthesize import DatasetRequest
from shared.contracts.train import TrainRequest
from shared.jobs import Ledger
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

RECORDS = (
    "datasets/{name}/submission.json", "datasets/{name}/dataset.json", "jobs/{job}/request.json",
    "jobs/{job}/plan.json", "jobs/{job}/result.json", "jobs/{job}/done/plan.json",
    "jobs/{job}/attempts/plan.json", "jobs/{job}/failed/plan.json", "names/datasets/{name}.json",
    "models/toy/2/model.json", "regions/other/regions.json", "cohorts/other/cohort.json",
    "clusters/other/run.json", "reports/other/report.json", "slides/other/slide.json",
    "access/tokens/0000.json",
)  # fmt: skip
LISTS = (
    "/v1/datasets", "/v1/jobs", "/v1/models", "/v1/regions", "/v1/cohorts", "/v1/clusters",
    "/v1/runs", "/v1/reports", "/v1/slides", "/v1/tokens", "/datasets", "/slides", "/training",
    "/atlas", "/studio", "/metrics",
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("store")
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store, size=32))
    return Gateway(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00\x80", b'{"of": "a newer version"}'])
def test_lists_and_pages_go_on(gateway: Gateway, content: bytes) -> None:
    store = gateway.resources.root
    ledger = Ledger(store)
    for number, record in enumerate(RECORDS):
        request = DatasetRequest(dataset=f"d{number}", model="toy", images=2)
        job = ledger.submit(request)
        store.put(record.format(name=request.dataset, job=job), content)
    for place in LISTS:
        answer = gateway.client.get(place)
        assert answer.status_code in {200, 303, 404}, (place, answer.status_code, answer.text)
    jobs = {item["job"]: item for item in gateway.client.get("/v1/jobs?limit=200").json()["items"]}
    assert len(jobs) == len(RECORDS)
    failed = [item["failed"]["record"] for item in jobs.values() if "record" in item["failed"]]
    assert sum("request.json" in each for each in failed) == 1
    for job in jobs:
        ledger.delete(job)
    store.delete_prefix("datasets/")
    store.delete_prefix("names/")


def test_audit_records_that_are_none_are_left_out(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    gateway.client.put("/v1/tenants/acme", json={})
    folder = f"audit/local/{datetime.now(UTC):%Y-%m-%d}"
    for number, content in enumerate((b"", b"{", b"[1]", b"\xff\xfe\x00")):
        gateway.resources.root.put(f"{folder}/{number}.json", content)
    (record,) = gateway.client.get("/v1/audit").json()["items"]
    assert record["action"] == "put tenant"


def test_a_run_is_shown_whatever_is_damaged_beside_it(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    store, ledger = gateway.resources.root, Ledger(gateway.resources.root)
    recipe = store.get_json("models/toy/1/model.json")["recipe"]
    recipe["vae"]["steps"] = recipe["denoiser"]["steps"] = 1
    jobs = {
        run: ledger.submit(
            TrainRequest.model_validate(
                {"run": run, "regions": "toy", "recipe": recipe, "model": run}
            )
        )
        for run in ("one", "two")
    }
    store.put(job_key(jobs["one"], "request.json"), b"")
    lines = (
        b'{"step": 1, "loss": 2.5}',
        b'{"loss": 1}',
        b'{"step": "x"}',
        b"7",
        b'{"step": 2, "st',
    )
    store.put("training/two/metrics/vae-00000001.jsonl", b"\n".join(lines))
    shown = gateway.client.get("/v1/runs/two").json()
    assert (shown["job"], shown["state"]) == (jobs["two"], "planning")
    assert shown["curves"] == {"vae": [{"step": 1.0, "loss": 2.5}]}
    assert caplog.text.count("training/two/metrics/vae-00000001.jsonl") == len(lines) - 1
    assert gateway.client.get("/training/two").status_code in {200, 303}
    assert gateway.client.get("/v1/runs/one").json()["state"] == "failed"


def test_what_is_no_progress_counts_as_none(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"dataset": "p", "model": "toy", "images": 8, "steps": 1, "shard_size": 2}
    newest = gateway.client.post("/v1/datasets", json=body)
    assert (newest.status_code, "models/toy/2/model.json" in newest.text) == (422, True)
    answer = gateway.client.post("/v1/datasets", json=body | {"version": "1"})
    assert answer.status_code == 202
    values = ("garbage", "[]", '{"done": "x", "total": 2, "note": ""}', '{"done": 1}',
              '{"done": -1e400, "total": 2, "note": ""}')  # fmt: skip
    reports = {f"shard-{number:06d}": value for number, value in enumerate(values)}
    reports["shard-000009"] = '{"done": 1, "total": 2, "note": "images"}'
    monkeypatch.setattr(gateway.resources.redis, "hgetall", lambda _: reports)
    assert gateway.client.get("/v1/datasets/p").json()["made"] == 1
    assert [item["made"] for item in gateway.client.get("/v1/datasets").json()["items"]] == [1]


def test_a_damaged_record_of_a_job_is_a_conflict(gateway: Gateway) -> None:
    request = DatasetRequest(dataset="r", model="toy", images=2)
    job = Ledger(gateway.resources.root).submit(request)
    gateway.resources.root.put(job_key(job, "request.json"), b"")
    answer = gateway.client.post(f"/v1/jobs/{job}/retry")
    assert answer.status_code == 409
    assert "submit the request again" in answer.json()["detail"]
