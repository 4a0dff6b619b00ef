"""The HTTP API's datasets, jobs and errors, on a directory store."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from heterotissue.stages import load_stage
from services.gateway.api import watching
from services.gateway.api.idempotency import claimed
from services.gateway.api.problems import ProblemError
from shared.contracts.regions import region_table_key
from shared.contracts.synthesize import DatasetRequest
from shared.datasets.samples import read_shard
from shared.imaging.codec import decode_png
from shared.imaging.region_sets import region_table
from shared.jobs import NoLeases, Reporter, execute
from shared.queue.tenants import ledger_of
from shared.storage import DirectoryStore, sha256
from tests.gateway import Gateway
from tests.region_sets import make_region_set

BODY: dict[str, Any] = {
    "dataset": "d", "model": "toy", "images": 6, "steps": 2, "shard_size": 4, "batch_size": 4,
}  # fmt: skip

JSON = {"Content-Type": "application/json"}
NAN = b'{"dataset": "d", "model": "toy", "proportions": {"tumor": NaN}}'


def test_a_dataset_is_submitted_watched_and_downloaded(gateway: Gateway) -> None:
    client = gateway.client
    answer = client.post("/v1/datasets", json=BODY)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == "/v1/datasets/d"
    status = answer.json()
    assert (status["state"], status["images"], status["made"]) == ("planning", 6, 0)
    ledger, stage = ledger_of(gateway.config, status["job"]), load_stage("synthesize")
    for unit in ("plan", "shard-000001"):
        execute(
            ledger, stage, status["job"], unit,
            leases=NoLeases(), reporter=Reporter(), config=gateway.config,
        )  # fmt: skip
    status = client.get("/v1/datasets/d").json()
    assert (status["state"], status["shards_done"], status["made"]) == ("running", 1, 2)
    assert decode_png(client.get("/v1/datasets/d/preview").content).ndim == 3
    assert client.get("/v1/datasets/d/archive").status_code == 409
    gateway.work(status["job"])
    shown = client.get("/v1/datasets/d")
    assert (shown.json()["state"], shown.json()["made"]) == ("done", 6)
    same = client.get("/v1/datasets/d", headers={"If-None-Match": shown.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    links = client.get("/v1/datasets/d/shards").json()["items"]
    assert [link["shard"] for link in links] == ["000000.tar", "000001.tar"]
    for link in links:
        body = client.get(link["url"]).content
        assert (len(body), sha256(body)) == (link["bytes"], link["sha256"])
    events = client.get("/v1/datasets/d/events").text
    assert events.startswith("event: status\ndata: ")
    assert json.loads(events.partition("data: ")[2].splitlines()[0])["state"] == "done"


def test_the_archive_holds_the_whole_dataset(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY | {"exports": ["folder"]}).json()["job"]
    gateway.work(job)
    data = gateway.client.get("/v1/datasets/d/archive").content
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert {"d/README.md", "d/croissant.json", "d/manifest.parquet", "d/dataset.json"} < set(files)
    assert "d/exports/folder/images/00000000.png" in files
    assert not {"d/submission.json", "d/choices.parquet", "d/shards/000000.parquet"} & set(files)
    samples = [s for n in (0, 1) for s in read_shard(files[f"d/shards/00000{n}.tar"])]
    assert [sample.provenance.index for sample in samples] == list(range(6))


def test_parts_of_files_can_be_asked_for(gateway: Gateway) -> None:
    gateway.work(gateway.client.post("/v1/datasets", json=BODY).json()["job"])
    place = "/v1/datasets/d/files/shards/000000.tar"
    whole = gateway.client.get(place)
    body, size, tag = whole.content, len(whole.content), whole.headers["ETag"]
    assert whole.headers["Accept-Ranges"] == "bytes"
    for asked, start, stop in (
        ("bytes=0-9", 0, 10), ("bytes=700-", 700, size), ("bytes=-5", size - 5, size),
        (f"bytes=9-{size + 9}", 9, size),
    ):  # fmt: skip
        part = gateway.client.get(place, headers={"Range": asked, "If-Range": tag})
        assert (part.status_code, part.content) == (206, body[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["Content-Length"] == str(stop - start)
    for other in ({"Range": "bytes=5-2"}, {"Range": "bytes=0-1,4-5"}, {"Range": "lines=1-2"},
                  {"Range": "bytes=-"}, {"Range": "bytes=0-9", "If-Range": '"older"'}):  # fmt: skip
        answer = gateway.client.get(place, headers=other)
        assert (answer.status_code, answer.content) == (200, body), other
    for beyond in (f"bytes={size}-", "bytes=-0"):
        refused = gateway.client.get(place, headers={"Range": beyond})
        assert (refused.status_code, refused.headers["Content-Range"]) == (416, f"bytes */{size}")
        assert refused.headers["Content-Type"] == "application/problem+json"
    same = gateway.client.get(place, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")


def test_a_dataset_describes_itself(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY | {"proportions": {"tumor": 0.5}}).json()
    gateway.work(job["job"])
    card = gateway.client.get("/v1/datasets/d/card")
    assert card.headers["Content-Type"].startswith("text/markdown")
    _, front, text = card.text.split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"][0]["path"] == "shards/*.tar"
    assert "| 2 | tumor | 0.500 |" in text
    croissant = gateway.client.get("/v1/datasets/d/croissant").json()
    files = {item["@id"]: item for item in croissant["distribution"]}
    for name in ("manifest.parquet", "shards/000001.tar"):
        body = gateway.client.get(f"/v1/datasets/d/files/{name}").content
        assert files[name]["sha256"] == sha256(body)
    assert croissant["conformsTo"].endswith("croissant/1.0")


def test_an_estimate_goes_by_what_earlier_datasets_took(gateway: Gateway) -> None:
    ask = BODY | {"dataset": "e", "images": 60}
    first = gateway.client.post("/v1/datasets/estimate", json=ask).json()
    assert (first["seconds"], first["bytes"], first["measured_images"]) == (None, None, 0)
    gateway.work(gateway.client.post("/v1/datasets", json=BODY).json()["job"])
    found = gateway.client.post("/v1/datasets/estimate", json=ask).json()
    assert (found["measured_datasets"], found["measured_images"]) == (1, 6)
    stored = sum(
        gateway.resources.root.size(f"datasets/d/shards/00000{number}.tar") for number in (0, 1)
    )
    assert found["bytes"] == 10 * stored
    assert found["seconds"] > 0
    more = ask | {"steps": 6, "guidance_map": 2, "guidance_crops": 1.5}
    slower = gateway.client.post("/v1/datasets/estimate", json=more).json()
    assert (found["evaluations"], slower["evaluations"]) == (1 + 2, 3 + 3 * 3)
    ratio = slower["evaluations"] / found["evaluations"]
    assert slower["seconds"] == pytest.approx(found["seconds"] * ratio, abs=0.05 * (1 + ratio))
    wrong = gateway.client.post("/v1/datasets/estimate", json=ask | {"model": "none"})
    assert wrong.status_code == 422
    assert len(gateway.client.get("/v1/datasets").json()["items"]) == 1


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"model": "none"}, "#/model", "no model 'none': it holds toy/1"),
        ({"proportions": {"necrosis": 0.5}}, "#/proportions", "necrosis"),
        ({"proportions": {"tumor": 0.8, "stroma": 0.8}}, "#/proportions", "at most 1 in sum"),
        ({"maps": {"splits": ["val"]}}, "#/maps", "no region in val"),
        ({"maps": {"splits": []}}, "#/maps/splits", "at least 1 item"),
        ({"crops": {"regions": "none"}}, "#/crops", "regions/none/set.json"),
        ({"crops": {"splits": ["test"], "slide": "same"}}, "#/crops", "for the maps of 'slide-a'"),
        (
            {"maps": {"splits": ["test"]}, "crops": {"splits": ["test"], "slide": "other"}},
            "#/crops",
            "on any slide but 'slide-c'",
        ),
        ({"images": 10_000_000}, "#/shard_size", "at most 100000"),
        ({"images": 0}, "#/images", "greater than or equal to 1"),
        ({"dataset": "../up"}, "#/dataset", "has a slash"),
        ({"colour": 1}, "#/colour", "no such field"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    gateway: Gateway, change: dict[str, Any], pointer: str, words: str
) -> None:
    answer = gateway.client.post("/v1/datasets", json=BODY | change)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert words in problem["detail"]
    assert gateway.client.get("/v1/jobs").json()["items"] == []


def test_a_field_that_is_sent_twice_is_refused(gateway: Gateway) -> None:
    body = json.dumps(BODY | {"seed": 3})[:-1] + ', "seed": 4}'
    answer = gateway.client.post(
        "/v1/datasets", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert "the body has 'seed' twice" in answer.json()["detail"]


def test_a_class_that_no_crop_can_be_cut_of_is_refused_at_once(gateway: Gateway) -> None:
    bare = make_region_set(gateway.resources.root, "bare")
    for part in bare.slides:  # its tables say that it has no tumour
        key = region_table_key("bare", part.slide)
        rows = pq.read_table(io.BytesIO(gateway.resources.root.get(key))).to_pylist()
        for row in rows:
            row["fractions"] = [row["fractions"][0], 1 - row["fractions"][0], 0.0]
        gateway.resources.root.put(key, region_table(rows))
    body = BODY | {"crops": {"regions": "bare"}}
    answer = gateway.client.post("/v1/datasets", json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["pointer"] == "#/crops"
    assert "no crop of 'tumor' for the maps of 'slide-a'" in problem["detail"]
    assert gateway.client.get("/v1/jobs").json()["items"] == []


def test_a_submission_is_idempotent(gateway: Gateway) -> None:
    key = {"Idempotency-Key": "k"}
    first = gateway.client.post("/v1/datasets", json=BODY, headers=key)
    again = gateway.client.post("/v1/datasets", json=BODY, headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    other = gateway.client.post("/v1/datasets", json=BODY | {"dataset": "e"}, headers=key)
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key-reused")
    taken = gateway.client.post("/v1/datasets", json=BODY | {"seed": 1})
    assert (taken.status_code, taken.json()["errors"][0]["pointer"]) == (409, "#/dataset")
    assert len(gateway.client.get("/v1/jobs").json()["items"]) == 1


def test_of_six_requests_with_one_key_one_is_accepted(gateway: Gateway) -> None:
    key = {"Idempotency-Key": "six"}

    def ask(number: int) -> tuple[int, str]:
        body = BODY | {"dataset": f"d{number}"}
        answer = gateway.client.post("/v1/datasets", json=body, headers=key)
        return answer.status_code, answer.json().get("type", "").rpartition(":")[2]

    with gateway.client, ThreadPoolExecutor(6) as pool:  # in one event loop, as on a server
        answers = sorted(pool.map(ask, range(6)))
    assert answers[0] == (202, "")
    assert set(answers[1:]) <= {(409, "busy"), (422, "idempotency-key-reused")}
    assert len(gateway.client.get("/v1/jobs").json()["items"]) == 1


def test_a_key_is_given_back_by_a_refused_request_and_by_a_dead_gateway(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, store = DatasetRequest.model_validate(BODY), gateway.resources.root
    key = {"Idempotency-Key": "k"}
    wrong = gateway.client.post("/v1/datasets", json=BODY | {"model": "none"}, headers=key)
    assert wrong.status_code == 422
    with pytest.raises(KeyboardInterrupt), claimed(store, "k", request):
        raise KeyboardInterrupt
    with claimed(store, "k", request), pytest.raises(ProblemError) as busy:  # noqa: SIM117
        with claimed(store, "k", request):
            pass
    assert busy.value.details.status == 409
    (place,) = store.list("idempotency/")
    left = store.get_json(place) | {"job": None, "begun": "2026-01-01T00:00:00Z"}
    store.put_json(place, left | {"begun": datetime.now(UTC).isoformat()})
    assert gateway.client.post("/v1/datasets", json=BODY, headers=key).status_code == 409
    store.put_json(place, left)
    assert gateway.client.post("/v1/datasets", json=BODY, headers=key).status_code == 202


def test_datasets_are_listed_in_pages(gateway: Gateway) -> None:
    for name in ("a", "b", "c"):
        gateway.client.post("/v1/datasets", json=BODY | {"dataset": name})
    gateway.client.post("/v1/datasets/b/cancel")
    first = gateway.client.get("/v1/datasets", params={"limit": 2}).json()
    assert ([item["dataset"] for item in first["items"]], first["next"]) == (["a", "b"], "b")
    rest = gateway.client.get("/v1/datasets", params={"cursor": first["next"]}).json()
    assert ([item["dataset"] for item in rest["items"]], rest["next"]) == (["c"], None)
    found = gateway.client.get("/v1/datasets", params={"state": "cancelled"}).json()
    assert [item["dataset"] for item in found["items"]] == ["b"]
    assert gateway.client.get("/v1/datasets", params={"model": "other"}).json()["items"] == []


def test_what_is_in_the_making_is_cancelled_before_it_is_deleted(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    refused = gateway.client.delete("/v1/datasets/d")
    assert refused.status_code == 409
    assert "cancel" in refused.json()["remedy"]
    assert gateway.client.post("/v1/datasets/d/cancel").json()["state"] == "cancelled"
    assert gateway.client.delete("/v1/datasets/d").status_code == 204
    assert gateway.client.get("/v1/datasets/d").status_code == 404
    assert gateway.client.get(f"/v1/jobs/{job}").status_code == 404
    assert list(gateway.resources.root.list("datasets/")) == []


def test_failed_shards_are_named_with_the_reason(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    gateway.resources.root.delete("regions/toy/slide-a.tar")
    gateway.work(job)
    status = gateway.client.get("/v1/datasets/d").json()
    assert status["state"] == "failed"
    assert set(status["failed"]) == {"shard-000000", "shard-000001"}
    assert gateway.client.post(f"/v1/jobs/{job}/retry").json()["state"] == "running"


def test_a_dataset_made_without_the_gateway_is_seen(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    gateway.work(job)
    gateway.resources.root.delete("datasets/d/submission.json")
    status = gateway.client.get("/v1/datasets/d").json()
    assert (status["job"], status["state"], status["made"]) == (job, "done", 6)


def test_every_error_is_a_problem_document(gateway: Gateway) -> None:
    for answer, status in (
        (gateway.client.get("/v1/nothing"), 404),
        (gateway.client.put("/v1/datasets"), 405),
        (gateway.client.get("/v1/datasets/none"), 404),
        (gateway.client.get("/v1/jobs/train-0123456789abcdef"), 404),
        (gateway.client.get("/v1/datasets", params={"limit": 0}), 422),
        (gateway.client.post("/v1/datasets", content=b"{", headers=JSON), 400),
        (gateway.client.post("/v1/datasets", content=NAN, headers=JSON), 422),
        (gateway.client.post("/v1/datasets", json={"dataset": "x" * (3 << 20)}), 413),
    ):  # fmt: skip
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_paths_on_a_workers_disk_are_refused(gateway: Gateway) -> None:
    body = {"cohort": "c", "slides": [{"slide": "a", "source": "/etc/passwd"}]}
    answer = gateway.client.post("/v1/ingest", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/slides/0/source"
    recipe = {"name": "x", "vae": {"pretrained": "out/store/tenants/beta/models/m/1/vae"}}
    body = {"run": "r", "model": "m", "regions": "toy", "recipe": recipe}
    answer = gateway.client.post("/v1/train", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/recipe/vae/pretrained"


def test_health_and_figures(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.client.get("/v1/datasets/none")
    assert gateway.client.get("/healthz").json() == {"status": "ok"}
    assert gateway.client.get("/readyz").status_code == 200  # though there is no Redis
    figures = gateway.client.get("/metrics").text
    assert (
        'htd_http_requests_total{method="GET",route="/v1/datasets/{dataset}",status="404"}'
        in figures
    )

    def away(*_: object) -> bool:
        raise OSError(errno.EIO, "no store")

    monkeypatch.setattr(DirectoryStore, "exists", away)
    assert gateway.client.get("/readyz").status_code == 503


def test_a_token_has_a_number_of_streams(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_STREAMS", 1)
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    gateway.client.post("/v1/datasets/d/cancel")
    board: watching.Watching = gateway.app.state.watching
    (token,) = [each.id for each in gateway.resources.tokens.all("local")]
    places = (f"/v1/jobs/{job}/events", "/v1/datasets/d/events")
    with board.seat(token):
        for place in places:
            refused = gateway.client.get(place)
            assert refused.status_code == 429
            assert refused.json()["type"].endswith("too-many-streams")
        assert gateway.holding("read").get(places[0]).status_code == 200
    for place in places:  # an ended stream counts no more
        assert gateway.client.get(place).status_code == 200


def test_the_gateway_ingest_and_the_command_line_start_without_torch() -> None:
    code = (
        "import sys, services.gateway.server, services.ingest.stage, heterotissue.cli.app; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_request_is_submitted_with_one_read_of_each_record(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()

    def get(self: DirectoryStore, key: str, read: Any = DirectoryStore.get) -> bytes:
        reads[key] += 1
        return bytes(read(self, key))

    monkeypatch.setattr(DirectoryStore, "get", get)
    assert gateway.client.post("/v1/datasets", json=BODY).status_code == 202
    records = {key: count for key, count in reads.items() if key.startswith(("models", "regions"))}
    assert records["models/toy/1/model.json"] == records["regions/toy/set.json"] == 1
    assert max(records.values()) == 1
