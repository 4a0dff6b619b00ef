"""Results whose name another job has taken over: whose they are, and who may take them."""

from __future__ import annotations

import pytest

from services.gateway.api import jobs
from services.gateway.api.access import STAGE_SCOPES
from shared.contracts.cluster import ClusterRequest
from shared.contracts.ingest import IngestRequest
from shared.contracts.requests import REQUESTS
from shared.contracts.synthesize import DatasetRequest
from shared.jobs import Ledger
from tests.gateway import Gateway
from tests.unit.test_gateway_datasets import BODY


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


def test_who_replaces_may_make_what_is_lost(gateway: Gateway) -> None:
    assert STAGE_SCOPES.keys() == REQUESTS.keys()
    root, ledger = gateway.resources.root, Ledger(gateway.resources.root)
    clustering = ClusterRequest(run="x", cohort="c", k=2)
    for key in (*clustering.inputs(), "clusters/x/run.json", "slides/a/source/a.svs"):
        root.put(key, b"{}")
    job = ledger.submit(clustering, replace=True)
    root.put("clusters/x/types.yaml", b"named by a person")
    ledger.close(job, "done", {})
    classes = {"items": [{"index": n, "name": f"t{n}", "color": [n, n, n]} for n in (0, 1)]}
    slides = [{"slide": "a", "source": "slides/a/source/a.svs"}]
    body = {"cohort": "x", "classes": classes, "slides": slides}
    place = "/v1/ingest?replace=true"
    refused = gateway.holding("annotate").post(place, json=body)
    assert refused.status_code == 403
    assert f"replacing what {job} has made needs the scope 'train'" in refused.json()["detail"]
    assert root.get("clusters/x/types.yaml") == b"named by a person"
    assert not list(root.list("open-jobs/"))
    ingest = IngestRequest.model_validate(body)
    mine = gateway.holding("annotate", "train").post(place, json=body)
    assert (mine.status_code, mine.json()["job"]) == (202, ledger.identify(ingest))
    assert list(root.list("clusters/")) == []
    again = {"run": "x", "cohort": "c", "k": 2}
    back = gateway.holding("train").post("/v1/cluster?replace=true", json=again)
    assert back.status_code == 403
    own = gateway.holding("annotate").post(place, json=body | {"patches": {"mpp": 2}})
    assert own.status_code == 202, own.text


def test_a_job_that_goes_away_meanwhile_is_no_fault_of_the_gateway(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = gateway.client
    job = client.post("/v1/datasets", json=BODY).json()["job"]

    def beaten(ledger: Ledger, name: str) -> dict[str, str]:
        ledger.delete(name)  # by another request, while this one cancels the job
        return {}

    monkeypatch.setattr(Ledger, "errors", beaten)
    changed = client.post("/v1/datasets/d/cancel")
    assert (changed.status_code, job in changed.json()["detail"]) == (409, True)
    monkeypatch.setattr(jobs, "check_job", lambda *_: None)
    gone = client.get(f"/v1/jobs/{job}")
    assert (gone.status_code, job in gone.json()["detail"]) == (404, True)


def test_what_a_late_worker_left_of_a_deleted_dataset_can_be_deleted(gateway: Gateway) -> None:
    root, client, place = gateway.resources.root, gateway.client, "/v1/datasets/d"
    root.put("datasets/d/README.md", b"late")
    assert client.get(place).status_code == 404
    assert client.post("/v1/datasets", json=BODY).status_code == 409
    assert client.delete(place).status_code == 204
    assert client.delete(place).status_code == 404
    assert client.post("/v1/datasets", json=BODY).status_code == 202
