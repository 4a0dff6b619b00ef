"""What the gateway answers to names, bodies and disks that it cannot take: never 500."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from services.gateway.api import routers
from services.gateway.api.problems import hide_paths
from services.gateway.api.slide_lookup import source_of
from shared.contracts.gateway import SlideInfo
from shared.contracts.ingest import SlideRecord
from shared.contracts.jobs import JobResult
from shared.errors import InputError
from shared.jobs.records import read_record, write_record
from shared.storage import DirectoryStore, KeyTakenError, check_key
from tests.gateway import Gateway

SLIDE = "/v1/slides/s/source"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    return Gateway(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ä" * 127 + ".svs", 422),  # 258 bytes
        ("ä" * 125 + ".svs", 200),  # 254 bytes
        ("a" * 300, 422),
        ("a%00b.svs", 422),
        ("%ff.svs", 422),
        ("..%2Fb.svs", 422),
        ("a/b/c.svs", 422),
    ],
)
def test_names_of_files(gateway: Gateway, name: str, status: int) -> None:
    answer = gateway.client.put(f"{SLIDE}/{name}", content=b"x")
    assert answer.status_code == status, answer.text


def test_a_name_is_a_file_or_a_folder(gateway: Gateway) -> None:
    put = gateway.client.put
    for first, second in (("one", "one/a.svs"), ("two/a.svs", "two")):
        assert put(f"{SLIDE}/{first}", content=b"x").status_code == 200
        answer = put(f"{SLIDE}/{second}", content=b"x")
        assert (answer.status_code, answer.json()["type"][-9:]) == (409, "key-taken")
        assert "choose another name" in answer.json()["detail"]
        begun = gateway.client.post("/v1/slides/s/uploads", json={"file": second, "bytes": 1})
        assert begun.status_code == 409
    files = gateway.client.get("/v1/slides/s").json()["files"]
    assert {"slides/s/source/one", "slides/s/source/two/a.svs"} <= files.keys()


def test_a_directory_store_says_which_object_is_in_the_way(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"x")
    for key in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(KeyTakenError, match="beside 'a/b'"):
            store.put(key, b"y")
    store.put("c/d/e", b"x")
    store.delete("c/d/e")  # leaves empty folders
    store.put("c", b"y")
    assert list(store.list()) == ["a/b", "c"]


def test_keys_fit_every_kind_of_store() -> None:
    assert check_key("a/" + "ä" * 127)
    for key in ("ä" * 128, "a/" * 600 + "a", "a\x00", "a\nb", "\ud800", "", "/a", "a//b", "../a"):
        with pytest.raises(InputError):
            check_key(key)


def ingest(source: str) -> bytes:
    return json.dumps({"cohort": "c", "slides": [{"slide": "x", "source": source}]}).encode()


def test_bodies_that_are_no_request(gateway: Gateway) -> None:
    typed = {"Content-Type": "application/json"}
    for body, status in (
        (b"[" * 100_000, 400),
        (b'{"slides":' * 50_000, 400),
        (b'{"cohort":' + b"9" * 5000 + b"}", 400),
        (b'{"cohort":"\xff"}', 400),
        (b'{"cohort":NaN}', 422),
        (b"", 422),
        (b"[]", 422),
        (ingest("\ud800"), 400),
        (ingest("a" * 300), 422),
        (json.dumps({"\ud800": "c"}).encode(), 400),
    ):  # fmt: skip
        answer = gateway.client.post("/v1/ingest", content=body, headers=typed)
        assert answer.status_code == status, (body[:40], answer.text)
        assert answer.json()["detail"]


def test_no_body_is_read_before_the_token(gateway: Gateway) -> None:
    taking = [
        (min(route.methods), re.sub(r"\{\w+\}", "x", route.path))
        for router in routers.ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and (route.body_field or route.openapi_extra)
    ]
    assert len(taking) > 20
    for method, path in taking:
        read: list[str] = []

        def body(path: str = path, read: list[str] = read) -> Iterator[bytes]:
            read.append(path)
            yield b"["  # is refused by parsing

        headers = {"Content-Type": "application/json", "Authorization": "Bearer htd_wrong"}
        answer = gateway.client.request(method, path, content=body(), headers=headers)
        assert (path, answer.status_code, read) == (path, 401, [])


def test_the_answer_to_many_faults_is_short(gateway: Gateway) -> None:
    keys = {f"{number}" * 1000: 0 for number in range(10, 60)}
    answer = gateway.client.post("/v1/ingest", json={"cohort": "c"} | keys)
    assert answer.status_code == 422
    assert len(answer.content) < 20_000
    assert len(answer.json()["errors"]) == 20
    assert answer.json()["detail"].endswith("and 30 more")
    answer = gateway.client.post("/v1/ingest", json={"slides": [{}] * 600})
    assert "1201 fields of the body are wrong" in answer.json()["detail"]
    many = {"slides": [[]] * 60_000}
    for path in ("/v1/ingest", "/v1/images"):
        answer = gateway.client.post(path, json=many)
        assert "more than 100000 values" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("number", "status", "kind"),
    [
        (errno.ENOSPC, 507, "full"),
        (errno.EDQUOT, 507, "full"),
        (errno.EROFS, 503, "unavailable"),
        (errno.EIO, 503, "unavailable"),
        (errno.EACCES, 503, "unavailable"),
        (errno.ENAMETOOLONG, 422, "invalid"),
    ],
)
def test_disks_that_take_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, number: int, status: int, kind: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(DirectoryStore, "put", refuse)
    answer = gateway.client.put("/v1/tenants/acme", json={})
    assert answer.status_code == status
    assert answer.json()["type"].endswith(kind)
    assert answer.json()["remedy"]


def test_messages_hold_no_path_of_the_server(gateway: Gateway) -> None:
    for text, shown in (
        ("/srv/htd/store holds no object 'a/b'", "…/store holds no object 'a/b'"),
        ("cannot open '/tmp/htd-x/a b.svs'", "cannot open '…/a b.svs'"),
        ("slides/a/x.svs: 3/4 of https://a.b/c/d", "slides/a/x.svs: 3/4 of https://a.b/c/d"),
        ("s3://bucket/a/b, or image/png", "s3://bucket/a/b, or image/png"),
        ("/home/Ann Smith/My Slides (2)/c 1.svs is bad: do a/b", "…/c 1.svs is bad: do a/b"),
        ("'/home/O (x), y/a b.svs' is bad", "'…/a b.svs' is bad"),
        ("'/a/b c.svs' and '/d/e.svs'", "'…/b c.svs' and '…/e.svs'"),
        ("/home/O'Brien/a.svs has '/x/y z/b.svs'", "…/a.svs has '…/b.svs'"),
        ("(/srv/a b/c.svs) and (/d/e.svs)", "(…/c.svs) and (…/e.svs)"),
        ("file:///srv/a b/c.svs, /d/e.svs", "file://…/c.svs, …/e.svs"),
        (r"C:\Users\Ann Smith\c.svs is bad", "…/c.svs is bad"),
    ):
        assert hide_paths(text) == shown
    root = gateway.resources.root
    place = "/home/Ann Smith/p.svs"
    record = SlideRecord(
        slide="q", source=place, sha256="0", width=9, height=9, mpp=1, mpp_y=1, vendor="x",
        levels=1, objective=None, tissue_fraction=1, stain="h&e",
    )  # fmt: skip
    root.put_json("slides/q/slide.json", record)
    info = gateway.client.get("/v1/slides/q").json()
    assert (info["source"], info["record"]["source"]) == ("…/p.svs", "…/p.svs")
    assert source_of(root, SlideInfo.model_validate(info)) == place
    answer = gateway.client.post("/v1/embed", json={"cohort": "none"})
    assert (answer.status_code, "cohorts/none.json" in answer.text) == (422, True)
    assert root.url not in answer.text
    root.put_json("cohorts/c.json", {})
    job = gateway.client.post("/v1/embed", json={"cohort": "c"}).json()["job"]
    gateway.resources.ledger("local").close(job, "failed", None)
    result = f"jobs/{job}/result.json"
    record = read_record(root, result, JobResult)
    made = {
        "left_out": {"/home/Ann Smith/c: d/x.png": "too small", "/home/x.png": "no /a/b c/y.png"},
        "cautions": ["/home/Ann Smith/c.svs"],
    }
    failed = {"plan": f"{root.url}/x is damaged"}
    write_record(root, result, record.model_copy(update={"failed": failed, "result": made}))
    assert gateway.client.get(f"/v1/jobs/{job}").json()["result"] == {
        "left_out": {"…/x.png": "too small", "…/x.png (2)": "no …/y.png"},
        "cautions": ["…/c.svs"],
    }
    for place in (f"/v1/jobs/{job}", "/v1/jobs"):
        said = gateway.client.get(place).text
        assert "…/x is damaged" in said
        assert root.url not in said


def test_colours_are_bytes(gateway: Gateway) -> None:
    for color in ([0, 0, 256], [-1, 0, 0], [0, 0, 10**30]):
        types = {"1": {"name": "a", "color": color}}
        answer = gateway.client.put("/v1/clusters/c/types", json=types)
        assert answer.json()["errors"][0]["pointer"].startswith("#/1/color/")


def test_invented_methods_and_paths_are_no_labels(gateway: Gateway) -> None:
    for number in range(5):
        gateway.client.request(f"BREW{number}", f"/nowhere/{number}")
        gateway.client.get(f"/static/{number}")
    lines = gateway.client.get("/metrics").text.splitlines()
    shown = [line for line in lines if line.startswith("htd_http_requests_total")]
    assert any('method="other"' in line for line in shown)
    assert not any("BREW" in line or "nowhere" in line for line in shown)
    assert not any(f"/{number}" in line for number in range(5) for line in shown)
