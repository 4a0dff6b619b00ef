"""The client's slides, tissue types, trainings and models, against a gateway below a path."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from heterotissue.client import Client, RefusedError, ServerError
from heterotissue.client.http import Transport
from services.gateway.api import uploads
from shared.contracts.cluster import TissueType, cluster_key, default_types, write_types
from shared.contracts.deploy import DeployBody
from shared.contracts.gateway import ImageBody
from shared.errors import InputError
from shared.storage import sha256
from tests.atlases import TYPES, make_atlas
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    gateway = Gateway(tmp_path_factory.mktemp("store"))
    store = gateway.resources.root
    publish_toy_model(store, make_region_set(store))
    make_atlas(store, tmp_path_factory.mktemp("slides"))
    return gateway


@pytest.fixture(scope="module")
def url(gateway: Gateway) -> Iterator[str]:
    """The gateway's address, as behind a proxy that gives it a path of its own."""
    app = Starlette(routes=[Mount("/under", gateway.app)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/under"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(gateway: Gateway, url: str) -> Iterator[Client]:
    token, _ = gateway.resources.tokens.create("tester", "local", ("admin",))
    with Client(url, token) as client:
        yield client


def test_a_slide_goes_up_in_parts_and_goes_on_where_it_broke_off(
    client: Client, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 1000)
    path, data = tmp_path / "a b.svs", np.random.default_rng(0).bytes(250_500)
    path.write_bytes(data)
    begun = client.begin_upload("up", path)
    first = f"/v1/slides/up/uploads/{begun.upload}/parts/1"
    assert gateway.client.put(first, content=data[:1000]).status_code == 204
    (tmp_path / "other").write_bytes(b"x")
    with pytest.raises(InputError, match="not the file of 250500 bytes"):
        client.finish_upload(begun, tmp_path / "other")
    info = client.finish_upload(begun, path)  # more parts than an upload's status lists
    assert gateway.resources.root.get(str(info.source)) == data
    assert client.upload_slide("up2", path).files == {"slides/up2/source/a b.svs": len(data)}
    note = tmp_path / "hé #1.geojson"
    note.write_bytes(b"{}")
    assert client.annotate_slide("up", note).annotation == "slides/up/annotation/hé #1.geojson"
    assert client.register_slide("up3", str(info.source)).source == info.source
    assert {"up", "up2", "up3"} < {slide.slide for slide in client.slides()}
    client.delete_slide("up")
    with pytest.raises(RefusedError, match="no slide 'up'"):
        client.slide("up")


class Hostile(BaseHTTPRequestHandler):
    """A gateway that answers what the test tells it."""

    answers: dict[str, tuple[int, dict[str, str], bytes]]
    heard: list[str]

    def do_GET(self) -> None:
        self.heard.append(f"{self.path} {self.headers['Authorization']}")
        status, headers, body = self.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[str]:
    Hostile.answers, Hostile.heard = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", ".x", "", "a\\b", "a\x00b"])
def test_a_gateway_names_no_file_outside_of_the_folder(
    hostile: str, tmp_path: Path, name: str
) -> None:
    link = {"shard": name, "url": "/data", "bytes": 1, "sha256": sha256(b"x")}
    page = json.dumps({"items": [link], "next": None}).encode()
    Hostile.answers |= {"/v1/datasets/d/shards": (200, {}, page), "/data": (200, {}, b"x")}
    folder = tmp_path / "in" / "d"
    with Client(hostile, "htd_x") as client, pytest.raises(ServerError, match="no ShardPage"):
        client.download_dataset("d", folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_answers_that_are_none_are_said_in_one_line(hostile: str) -> None:
    problem = {"Content-Type": "application/problem+json"}
    with Client(hostile, "htd_x") as client:
        for path, answer in (
            ("/v1/slides/s", (200, {}, b"<html>")),
            ("/v1/slides/s", (200, {}, b"{}")),
            ("/v1/slides/s", (422, problem, b"[]")),
            ("/v1/slides/s", (500, problem, b"{")),
            ("/v1/slides/s", (302, {"Location": "http://127.0.0.1:1/"}, b"")),
        ):
            Hostile.answers[path] = answer
            with pytest.raises(ServerError):
                client.slide("s")
        again = json.dumps({"items": [], "next": "a"}).encode()
        Hostile.answers["/v1/slides"] = Hostile.answers["/v1/slides?cursor=a"] = (200, {}, again)
        with pytest.raises(ServerError, match="same page twice"):
            list(client.slides())


def test_other_servers_do_not_see_the_token(hostile: str) -> None:
    other = hostile.replace("127.0.0.1", "localhost")
    Hostile.answers["/v1/images"] = (202, {"Location": f"{other}/picked"}, b"")
    body = ImageBody(model="m", labels=b64encode(b"png"))
    with Client(hostile, "htd_x") as client, pytest.raises(ServerError, match="not its own"):
        client.make_image(body)
    assert not any(line.startswith("/picked") for line in Hostile.heard)


def test_tissue_types_are_named_one_by_one(
    client: Client, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (run,) = gateway.resources.root, client.clusterings()
    before = {item.label: item.type for item in client.atlas(run).types}
    kind = TissueType(name="gland", color=(1, 2, 3))
    after = {item.label: item.type for item in client.name_types(run, {2: kind}).types}
    assert after == before | {2: kind}
    slide = next(store.list(cluster_key(run, "labels/"))).rpartition("/")[2].removesuffix(".tif")
    client.download_types(run, slide, tmp_path / "types.tif")
    client.download_labels(slide, tmp_path / "labels.tif")
    for name, key in (
        ("types.tif", cluster_key(run, f"labels/{slide}.tif")),
        ("labels.tif", f"slides/{slide}/labels/textures.tif"),
    ):
        assert (tmp_path / name).read_bytes() == store.get(key)
    with pytest.raises(RefusedError, match="no finished job of clustering"):
        client.apply_types(run)

    send = Transport.send

    def meddled(self: Transport, method: str, *rest: Any, **named: Any) -> Any:
        answer = send(self, method, *rest, **named)
        if method == "GET":  # somebody else saves
            store.put(cluster_key(run, "types.yaml"), write_types(default_types(TYPES)))
        return answer

    monkeypatch.setattr(Transport, "send", meddled)
    with pytest.raises(RefusedError, match="changed by somebody else"):
        client.name_types(run, {1: kind})


def test_trainings_and_models_are_seen_and_deployed(client: Client, gateway: Gateway) -> None:
    store = gateway.resources.root
    store.put("training/r/metrics/vae-00000002.jsonl", b'{"step": 1, "loss": 2.5}\n')
    store.put("training/r/samples/00000002.png", b"png")
    assert list(client.trainings()) == ["r"]
    run = client.training("r")
    assert (run.curves["vae"][0]["loss"], run.samples) == (2.5, ("00000002.png",))
    assert client.sample_sheet("r", run.samples[0]) == b"png"
    assert [item.record.model for item in client.models()] == ["toy"]
    assert not client.model("toy", "1").served
    jobs = [client.deploy_model("toy", "1"), client.deploy_model("toy", "1", DeployBody())]
    assert [job.stage for job in jobs] == ["deploy", "deploy"]
    with pytest.raises(RefusedError, match="no model toy/2"):
        client.deploy_model("toy", "2")
