"""The HTTP API's uploads of slides and annotations, whole and in parts, on a directory store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services.gateway.api import uploads
from shared.jobs import Ledger
from shared.queue.sweeping import sweep
from shared.storage import DirectoryStore, ObjectNotFoundError
from shared.storage.parts import part_upload
from tests.gateway import Gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def test_large_files_come_in_parts_and_go_on_where_they_broke_off(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 1000)
    client = gateway.client
    data = np.random.default_rng(0).bytes(2500)
    begun = client.post("/v1/slides/a/uploads", json={"file": "a.svs", "bytes": 2500})
    place = begun.headers["Location"]
    assert [part["bytes"] for part in begun.json()["missing"]] == [1000, 1000, 500]
    client.put(f"{place}/parts/3", content=data[2000:])
    assert client.put(f"{place}/parts/1", content=data[:999]).status_code == 422
    client.put(f"{place}/parts/1", content=data[:1000])
    refused = client.post(f"{place}/complete")
    assert (refused.status_code, "part 2" in refused.json()["detail"]) == (409, True)
    status = client.get(place).json()
    assert (status["arrived"], len(status["missing"])) == ([1, 3], 1)
    client.put(status["missing"][0]["url"], content=data[1000:2000])
    assert client.post(f"{place}/complete").json()["files"] == {"slides/a/source/a.svs": 2500}
    assert gateway.resources.root.get("slides/a/source/a.svs") == data
    assert client.get(place).status_code == 404
    assert list(gateway.resources.root.list("parts/")) == []
    again = client.post("/v1/slides/a/uploads", json={"file": "b.svs", "bytes": 10}).headers
    assert client.delete(again["Location"]).status_code == 204


def test_uploads_of_one_name_do_not_mix(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 4)
    client, root = gateway.client, gateway.resources.root

    def begin(file: str) -> str:
        begun = client.post("/v1/slides/a/uploads", json={"file": file, "bytes": 8})
        assert begun.status_code == 201, begun.text
        return str(begun.headers["Location"])

    first = begin("f")
    client.put(f"{first}/parts/1", content=b"1111")
    second, inner = begin("f"), begin("f/g.dcm")
    client.put(f"{second}/parts/2", content=b"2222")
    client.put(f"{inner}/parts/1", content=b"3333")
    for place, arrived in ((first, [1]), (second, [2]), (inner, [1])):
        assert client.get(place).json()["arrived"] == arrived
    assert client.delete(second).status_code == 204
    client.put(f"{first}/parts/2", content=b"1111")
    client.put(f"{inner}/parts/2", content=b"3333")
    assert client.post(f"{first}/complete").status_code == 200
    assert root.get("slides/a/source/f") == b"11111111"
    assert client.post(f"{inner}/complete").status_code == 409  # f is a file now
    assert client.delete(inner).status_code == 204
    assert list(root.list("parts/")) == []


def test_an_upload_of_more_than_was_announced_is_removed(gateway: Gateway) -> None:
    client, store = gateway.client, gateway.resources.root
    begun = client.post("/v1/slides/a/uploads", json={"file": "a.svs", "bytes": 10})
    client.put(begun.json()["missing"][0]["url"], content=b"0123456789")
    (part,) = store.list("parts/")
    store.put(part, b"more than ten bytes")  # a server that let it
    refused = client.post(f"{begun.headers['Location']}/complete")
    assert refused.status_code == 422
    assert "more bytes than the 10 that were announced" in refused.json()["detail"]
    assert [*store.list("parts/"), *store.list("uploads/"), *store.list("slides/")] == []


def test_what_was_begun_and_left_is_swept(gateway: Gateway) -> None:
    client, root = gateway.client, gateway.resources.root
    begun = client.post("/v1/slides/a/uploads", json={"file": "a.svs", "bytes": 10})
    client.put(begun.json()["missing"][0]["url"], content=b"0123456789")
    root.put("parts/slides/b/source/lost/00001", b"its record is gone")
    root.put("uploads/damaged.json", b"{")
    sessions = gateway.resources.sessions
    session = str(sessions.follow_link(sessions.make_link("browser", ("read",))))
    ledger, kept, now = Ledger(root), timedelta(days=30), datetime.now(UTC)
    before = set(root.list())
    assert sweep(ledger, kept, now + timedelta(hours=13)) == 0
    assert set(root.list()) == before
    assert sweep(ledger, kept, now + timedelta(days=2)) == 2  # a session, and its link
    assert sessions.find(session) is None
    assert not list(root.list("access/sessions/"))
    assert list(root.list("access/tokens/"))
    assert sweep(ledger, kept, now + timedelta(days=8)) == 3
    assert [*root.list("parts/"), *root.list("uploads/")] == []
    assert client.get(begun.headers["Location"]).status_code == 404


def test_parts_that_are_gone_leave_no_half_a_file(gateway: Gateway) -> None:
    """As when an upload is completed twice at a time, and the other try is done first."""
    store = gateway.resources.root
    parts = part_upload(store, "slides/a/source/a.svs")
    name = parts.begin()
    for number in (1, 2):
        store.put(f"parts/{name}/{number:05d}", b"half")
    store.delete(f"parts/{name}/00002")
    with pytest.raises(ObjectNotFoundError):
        parts.complete(name, 2)
    assert not store.exists("slides/a/source/a.svs")


@pytest.mark.parametrize("said", [2, 9])
def test_a_body_has_the_size_that_was_counted(gateway: Gateway, said: int) -> None:
    headers = {"Content-Length": str(said)}
    for place in ("/v1/slides/a/source/a.svs", "/v1/features/f/a.h5"):
        answer = gateway.client.put(place, content=b"12345", headers=headers)
        assert (answer.status_code, f"says {said} bytes" in answer.text) == (400, True)
    assert list(gateway.resources.root.list("slides/")) == []


@pytest.mark.parametrize("file", ["..%2Fx.svs", ".hidden", "a/b/c.svs", "-x", "a%00b"])
def test_names_of_files_stay_below_their_slide(gateway: Gateway, file: str) -> None:
    answer = gateway.client.put(f"/v1/slides/a/source/{file}", content=b"x")
    assert answer.status_code in {404, 422}, answer.text
    assert list(gateway.resources.root.list("slides/")) == []


def test_annotations_of_unknown_formats_are_refused(gateway: Gateway) -> None:
    answer = gateway.client.put("/v1/slides/a/annotation/a.docx", content=b"x")
    assert answer.status_code == 415
    assert ".geojson" in answer.json()["remedy"]


@pytest.mark.parametrize("file", ["a.svs.geojson", "a.GEOJSON.GZ", "a.ndpi.ndpa", "a_mask.npy"])
def test_annotations_of_every_format_are_taken(gateway: Gateway, file: str) -> None:
    answer = gateway.client.put(f"/v1/slides/a/annotation/{file}", content=b"x")
    assert answer.status_code in {200, 201}, answer.text
    assert answer.json()["annotation"].endswith(file)


def test_an_annotation_replaces_earlier_ones_but_none_that_comes_meanwhile(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(file: str) -> None:
        answer = gateway.client.put(f"/v1/slides/a/annotation/{file}", content=b"{}")
        assert answer.status_code == 200, answer.text

    def annotations() -> list[str]:
        keys = gateway.resources.root.list("slides/a/annotation/")
        return [key.rpartition("/")[2] for key in keys]

    for file in ("old.xml", "old.geojson"):
        put(file)
        assert annotations() == [file]
    both, real = threading.Barrier(2, timeout=20), DirectoryStore.put_file

    def put_file(self: DirectoryStore, key: str, path: Path) -> str:
        both.wait()  # both have seen what is there
        tag = real(self, key, path)
        both.wait()
        return tag

    monkeypatch.setattr(DirectoryStore, "put_file", put_file)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, ("one.geojson", "two.xml")))
    assert annotations() == ["one.geojson", "two.xml"]
    monkeypatch.setattr(DirectoryStore, "put_file", real)
    put("three.xml")
    assert annotations() == ["three.xml"]
