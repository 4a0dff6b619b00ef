"""A record that nobody can read is the problem of its thing alone: lists and pages go on."""

from __future__ import annotations

import pytest

from shared.contracts.synthesize import DatasetRequest
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
