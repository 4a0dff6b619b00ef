"""Results whose name another job has taken over: whose they are, and who may take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contracts.synthesize import DatasetRequest
from shared.jobs import Ledger
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_gateway_datasets import BODY


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    return Gateway(tmp_path)


def test_a_dataset_is_that_of_the_job_that_has_its_name(gateway: Gateway) -> None:
    root, client, place = gateway.resources.root, gateway.client, "/v1/datasets/d"
    gateway.work(client.post("/v1/datasets", json=BODY).json()["job"])
    job = Ledger(root).submit(DatasetRequest.model_validate(BODY | {"seed": 9}), replace=True)
    key = f"jobs/{job}/request.json"
    request = root.get(key)
    for content in (b"", request):  # one that cannot be read has the name no less
        root.put(key, content)
        assert client.get(place).json()["job"] == job
        refused = client.delete(place)
        assert (refused.status_code, job in refused.json()["remedy"]) == (409, True)
        again = client.post("/v1/datasets", json=BODY)
        assert (again.status_code, again.json()["errors"][0]["pointer"]) == (409, "#/dataset")
    assert gateway.work(job).state == "done"
    shown = client.get(place).json()
    assert (shown["job"], shown["state"], shown["created"]) == (job, "done", None)
    assert client.delete(place).status_code == 204
    assert list(root.list("datasets/")) == list(root.list("names/")) == []
    assert not root.exists(key)
