"""The reader study over HTTP; and a reader who looks for the truth everywhere but in the pixels."""

from __future__ import annotations

import csv
import io
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from services.gateway.reader_study.readings import Desk, SubmittedError, read_answers
from services.gateway.reader_study.records import Key, Series, StudyRecord
from shared.contracts.reader_study import AnswerBody, Kind, study_key
from shared.queue.tenants import tenant_ledger
from shared.storage import DirectoryStore, StoreView
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

IMAGES = 8
BODY: dict[str, Any] = {
    "study": "s",
    "real": [{"regions": "toy"}],
    "synthetic": ["d"],
    "images": 5,
    "readers": ["Ann", "Bob"],
    "seed": 7,
}
DATASET = {
    "dataset": "d", "model": "toy", "images": IMAGES, "steps": 1, "shard_size": 4, "batch_size": 4,
}  # fmt: skip
SAID = {"answer": "real", "quality": 4, "seconds": 2.5}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("studies")
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store, regions=IMAGES))
    gateway = Gateway(folder)
    gateway.work(gateway.client.post("/v1/datasets", json=DATASET).json()["job"])
    return gateway


@pytest.fixture
def gateway(filled: Gateway) -> Gateway:
    filled.resources.root.delete_prefix("reader_studies/")
    filled.resources.root.delete_prefix("access/readings/")
    return filled


def reading(gateway: Gateway, link: dict[str, str]) -> TestClient:
    headers = {"Authorization": f"Bearer {link['token']}"}
    return TestClient(gateway.app, headers=headers, raise_server_exceptions=False)


def make(gateway: Gateway, **change: Any) -> tuple[dict[str, Any], list[TestClient]]:
    answer = gateway.client.post("/v1/reader-studies", json=BODY | change)
    assert answer.status_code == 201, answer.text
    return answer.json()["status"], [reading(gateway, link) for link in answer.json()["links"]]


def truths(gateway: Gateway, reader: str) -> dict[str, Kind]:
    """The truth by the reader's own names of images, which only the store's owner can tell."""
    root = gateway.resources.root
    key = root.get_model(study_key("s", "key.json"), Key)
    kinds = {truth.picture: truth.kind for truth in key.pictures}
    series = root.get_model(study_key("s", f"series/{reader}.json"), Series)
    return {place.image: kinds[place.picture] for place in series.places}


def test_a_study_is_made_read_and_its_results_shown(gateway: Gateway) -> None:
    status, clients = make(gateway)
    assert (status["images"], status["size"], status["mpp"]) == (5, 32, 0.5)
    assert sum(n for counts in status["classes"].values() for n in counts.values()) == 10
    for number, client in enumerate(clients, 1):
        found = client.get("/v1/reading").json()
        assert len(found["images"]) == 10
        assert not any(item["answer"] for item in found["images"])
        kinds = truths(gateway, f"r{number}")
        for position, item in enumerate(found["images"]):
            kind = kinds[item["image"]]
            # Ann is right throughout; Bob calls everything real.
            said = kind if number == 1 else "real"
            body = {"answer": said, "quality": 5 if kind == "real" else 3, "seconds": position}
            put = client.put(f"/v1/reading/answers/{item['image']}", json=body)
            assert put.status_code == 200, put.text
        assert client.post("/v1/reading/submit").json()["submitted"]
    progress = gateway.client.get("/v1/reader-studies/s").json()["readers"]
    assert [(each["name"], each["answered"]) for each in progress] == [("Ann", 10), ("Bob", 10)]
    assert all(each["submitted"] for each in progress)
    results = gateway.client.get("/v1/reader-studies/s/results").json()
    assert results["complete"]
    ann, bob = results["readers"]
    assert (ann["accuracy"]["value"], bob["accuracy"]["value"]) == (1.0, 0.5)
    assert (bob["sensitivity"]["value"], bob["specificity"]["value"]) == (0.0, 1.0)
    assert ann["d_prime"] > 2
    assert bob["d_prime"] == pytest.approx(0)
    assert bob["criterion"] > 1
    assert results["pooled"]["accuracy"]["value"] == pytest.approx(0.75)
    assert results["pooled"]["quality"]["real"]["counts"] == [0, 0, 0, 0, 10]
    assert results["pooled"]["quality_difference"]["value"] == pytest.approx(-2)
    assert results["agreement"]["pairs"][0]["cohen"] == pytest.approx(0)
    assert {(group["group"], group["kind"]) for group in results["sets"]} == {
        ("toy (test)", "real"), ("d", "synthetic"),
    }  # fmt: skip


def test_answers_are_kept_changed_and_then_final(gateway: Gateway) -> None:
    _, (client, _) = make(gateway)
    images = [item["image"] for item in client.get("/v1/reading").json()["images"]]
    place = f"/v1/reading/answers/{images[0]}"
    assert client.put(place, json=SAID).json() == SAID | {"note": ""}
    key = study_key("s", f"answers/r1/{images[0]}.json")
    first = gateway.resources.root.get(key)
    client.put(place, json=SAID | {"seconds": 9})
    assert gateway.resources.root.get(key) == first  # the same answer again is no other
    changed = client.put(place, json=SAID | {"quality": 1, "seconds": 9, "note": "blurred"}).json()
    assert changed == SAID | {"quality": 1, "note": "blurred"}
    again = client.get("/v1/reading").json()["images"][0]
    assert again == {"image": images[0], "answer": changed}
    early = client.post("/v1/reading/submit")
    assert (early.status_code, early.json()["type"]) == (409, "urn:heterotissue:problem:unanswered")
    assert "9 of 10" in early.json()["detail"]
    for image in images[1:]:
        client.put(f"/v1/reading/answers/{image}", json=SAID)
    assert client.post("/v1/reading/submit").status_code == 200
    assert client.post("/v1/reading/submit").status_code == 200
    assert client.put(place, json=SAID).status_code == 409


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"real": [{"regions": "none"}]}, "#/real/0", "regions/none/set.json"),
        ({"synthetic": ["d", "none"]}, "#/synthetic/1", "datasets/none/dataset.json"),
        ({"synthetic": ["d", "d"]}, "#", "named twice"),
        ({"images": 9}, "#/images", "9 real images are asked for, but the sets hold 8"),
        ({"real": [{"regions": "coarse"}]}, "#/images", "would recognise resampled images"),
        ({"readers": ["Ann", "Ann"]}, "#", "named twice"),
        ({"readers": []}, "#/readers", "at least 1"),
        ({"study": "../up"}, "#/study", "has a slash"),
        ({"readers": ["a\nb"]}, "#/readers/0", "must match"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    gateway: Gateway, change: dict[str, Any], pointer: str, words: str
) -> None:
    root = gateway.resources.root
    coarse = make_region_set(root, "coarse", regions=IMAGES)
    rule = coarse.rule.model_copy(update={"mpp": 1.0})
    root.put_json("regions/coarse/set.json", coarse.model_copy(update={"rule": rule}))
    answer = gateway.client.post("/v1/reader-studies", json=BODY | change)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert words in answer.json()["detail"]
    assert list(root.list("reader_studies/")) == []


def test_a_broken_set_leaves_nothing_behind(gateway: Gateway) -> None:
    root = gateway.resources.root
    shard = root.get("datasets/d/shards/000001.tar")
    root.delete("datasets/d/shards/000001.tar")
    try:
        answer = gateway.client.post("/v1/reader-studies", json=BODY | {"images": IMAGES})
    finally:
        root.put("datasets/d/shards/000001.tar", shard)
    assert answer.status_code == 422
    assert list(root.list("reader_studies/")) == []
    assert list(root.list("access/readings/")) == []
    assert gateway.client.post("/v1/reader-studies", json=BODY).status_code == 201
    taken = gateway.client.post("/v1/reader-studies", json=BODY)
    assert (taken.status_code, taken.json()["errors"][0]["pointer"]) == (409, "#/study")


def test_links_are_renewed_and_end_with_the_study(gateway: Gateway) -> None:
    _, (ann, bob) = make(gateway)
    root = gateway.resources.root
    kept = {key: root.get(key) for key in root.list("access/readings/")}
    link = gateway.client.post("/v1/reader-studies/s/readers/r1/link").json()
    for key in set(kept) - set(root.list("access/readings/")):  # a backup puts Ann's back
        root.put(key, kept[key])
        assert ann.get("/v1/reading").status_code == 401
        root.delete(key)
    assert link["path"] == f"/read#{link['token']}"
    assert ann.get("/v1/reading").status_code == 401
    assert reading(gateway, link).get("/v1/reading").json()["reader"] == "Ann"
    assert bob.get("/v1/reading").status_code == 200
    assert gateway.client.post("/v1/reader-studies/s/readers/r9/link").status_code == 404
    stored = b"".join(
        gateway.resources.root.get(key) for key in gateway.resources.root.list("access/")
    )
    assert link["token"].encode() not in stored
    assert gateway.client.delete("/v1/reader-studies/s").status_code == 204
    assert bob.get("/v1/reading").status_code == 401
    assert list(gateway.resources.root.list("reader_studies/")) == []
    assert list(gateway.resources.root.list("access/readings/")) == []


def test_a_study_is_its_makers_and_its_tenants(gateway: Gateway) -> None:
    make(gateway)
    assert gateway.holding("read").get("/v1/reader-studies/s/results").status_code == 403
    assert gateway.holding("generate").get("/v1/reader-studies/s/results").status_code == 200
    gateway.client.put("/v1/tenants/acme", json={})
    theirs = gateway.holding("admin", tenant="acme")
    assert theirs.get("/v1/reader-studies").json()["items"] == []
    store = tenant_ledger(gateway.config, "acme").store
    publish_toy_model(store, make_region_set(store, regions=IMAGES))
    gateway.work(theirs.post("/v1/datasets", json=DATASET).json()["job"])
    links = theirs.post("/v1/reader-studies", json=BODY | {"readers": ["Cy"]}).json()["links"]
    assert reading(gateway, links[0]).get("/v1/reading").json()["reader"] == "Cy"
    theirs.delete("/v1/reader-studies/s")
    assert gateway.client.get("/v1/reader-studies/s").status_code == 200


def test_the_csv_holds_every_answer_and_no_formula(gateway: Gateway) -> None:
    _, (client, _) = make(gateway)
    image = client.get("/v1/reading").json()["images"][3]["image"]
    client.put(f"/v1/reading/answers/{image}", json=SAID | {"note": '=HYPERLINK("x")\n"y"'})
    answer = gateway.client.get("/v1/reader-studies/s/answers.csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    truth = truths(gateway, "r1")[image]
    assert (row["name"], row["position"], row["truth"]) == ("Ann", "4", truth)
    assert (row["answer"], row["correct"]) == ("real", str(int(truth == "real")))
    assert row["note"] == '\'=HYPERLINK("x")\n"y"'


def headers_of_jpeg(data: bytes) -> bytes:
    """Everything before the pixels: JFIF, quantisation, frame, Huffman tables, scan header."""
    return data[: data.index(b"\xff\xda") + 14]


def test_nothing_but_the_pixels_tells_the_truth(gateway: Gateway) -> None:
    status, clients = make(gateway, images=IMAGES)
    every_id: list[str] = []
    for number, client in enumerate(clients, 1):
        answer = client.get("/v1/reading")
        assert not re.search("synthetic|toy|regions|slide|dataset|seed|tumor", answer.text)
        images = [item["image"] for item in answer.json()["images"]]
        every_id += images
        kinds = truths(gateway, f"r{number}")
        seen: dict[Kind, set[Any]] = {"real": set(), "synthetic": set()}
        content: dict[Kind, list[int]] = {"real": [], "synthetic": []}
        for image in images:
            got = client.get(f"/v1/reading/images/{image}")
            assert got.status_code == 200
            with Image.open(io.BytesIO(got.content)) as picture:
                assert picture.size == (status["size"],) * 2
                assert not picture.getexif()
                about = (picture.format, picture.mode, sorted(picture.info), picture.info["jfif"])
            content[kinds[image]].append(len(got.content.rstrip(b"\0")))
            seen[kinds[image]].add(
                (
                    str(sorted(got.headers.items())), len(got.content), str(about),
                    headers_of_jpeg(got.content),
                )
            )  # fmt: skip
        assert len(seen["real"]) == 1
        assert seen["real"] == seen["synthetic"]
        # The pixels do weigh differently: without padding, sizes would have told.
        assert max(content["real"]) < min(content["synthetic"]) or (
            min(content["real"]) > max(content["synthetic"])
        )
    assert len(set(every_id)) == len(every_id)  # readers cannot compare names
    stored = {
        key.rpartition("/")[2][:32] for key in gateway.resources.root.list("reader_studies/s/i")
    }
    assert not stored & set(every_id)


def test_real_and_synthetic_take_the_same_way_through_the_store(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work for an answer, and so its time, does not depend on the truth."""
    _, (client, _) = make(gateway)
    kinds = truths(gateway, "r1")
    read: list[str] = []
    local = DirectoryStore.local

    def recorded(store: DirectoryStore, key: str) -> Path:
        read.append(re.sub("[0-9a-f]{32,64}", "…", key))
        return local(store, key)

    monkeypatch.setattr(DirectoryStore, "local", recorded)
    ways: dict[Kind, set[tuple[str, ...]]] = {"real": set(), "synthetic": set()}
    for image, kind in kinds.items():
        read.clear()
        client.get(f"/v1/reading/images/{image}")
        client.put(f"/v1/reading/answers/{image}", json=SAID)
        ways[kind].add(tuple(read))
    assert ways["real"] == ways["synthetic"]
    (way,) = ways["real"]
    assert "reader_studies/s/images/….jpg" in way
    assert not any("key.json" in key for key in way)


def test_an_answer_counts_if_it_was_accepted_and_only_then(gateway: Gateway) -> None:
    _, (ann, _) = make(gateway)
    root = gateway.resources.root
    record = root.get_model(study_key("s", "study.json"), StudyRecord)
    images = [item["image"] for item in ann.get("/v1/reading").json()["images"]]
    for image in images:
        ann.put(f"/v1/reading/answers/{image}", json=SAID)

    class Racing(StoreView):
        """The reader submits just before, or just after, an answer is stored."""

        def __init__(self, early: bool) -> None:
            super().__init__(root)
            self.early = early

        def put_json(self, key: str, value: Any) -> None:
            if self.early:
                Desk(root, record, "r1").submit()
            super().put_json(key, value)
            Desk(root, record, "r1").submit()

    changed = AnswerBody(answer="synthetic", quality=1, seconds=1)
    for early in (False, True):
        desk = Desk(Racing(early), record, "r1")
        root.delete_prefix(study_key("s", "submitted/"))
        root.delete_prefix(study_key("s", "closed/"))
        image = images[int(early)]
        with pytest.raises(SubmittedError) if early else nullcontext():
            desk.answer(image, changed)
        counted = read_answers(root, "s", "r1")[image]
        assert counted.answer == ("real" if early else "synthetic")
    late = ann.put(f"/v1/reading/answers/{images[2]}", json=changed.model_dump())
    assert late.status_code == 409
    assert read_answers(root, "s", "r1")[images[2]].answer == "real"


def test_a_readers_token_opens_its_series_and_nothing_else(gateway: Gateway) -> None:
    _, (ann, bob) = make(gateway)
    gateway.holding("read")
    gateway.resources.wrong.most = 1000
    names = {
        "dataset": "d", "model": "toy", "version": "1", "name": "toy", "slide": "slide-a",
        "study": "s", "reader": "r1", "path": "dataset.json", "run": "r",
        "job": "train-0123456789abcdef",
    }  # fmt: skip
    open_to_all = ("/healthz", "/readyz", "/metrics")
    for path, operations in gateway.app.openapi()["paths"].items():
        if path.startswith("/v1/reading") or path in open_to_all:
            continue
        place = re.sub(r"{(\w+)}", lambda found: names.get(found[1], "1"), path)
        for method in operations:
            answer = ann.request(method, place, json={})
            assert answer.status_code in {401, 400, 411, 422} or method != "get", place
            assert not answer.is_success, (method, place)
        if "get" in operations:
            assert ann.get(place).status_code == 401, place
    other = bob.get("/v1/reading").json()["images"][0]["image"]
    assert ann.get(f"/v1/reading/images/{other}").status_code == 404
    assert ann.put(f"/v1/reading/answers/{other}", json=SAID).status_code == 404
    picture = next(gateway.resources.root.list("reader_studies/s/images/")).rpartition("/")[2][:32]
    assert ann.get(f"/v1/reading/images/{picture}").status_code == 404
    assert gateway.client.get("/v1/reading").status_code == 401  # nor is an administrator a reader


def test_the_same_seed_is_the_same_design_under_other_names(gateway: Gateway) -> None:
    make(gateway)
    first = truths(gateway, "r1")
    gateway.client.delete("/v1/reader-studies/s")
    make(gateway)
    again = truths(gateway, "r1")
    assert list(first.values()) == list(again.values())
    assert not set(first) & set(again)
    gateway.client.delete("/v1/reader-studies/s")
    make(gateway, seed=None)
    drawn = gateway.resources.root.get_model(study_key("s", "key.json"), Key).seed
    assert drawn > 2**32  # not to be guessed
