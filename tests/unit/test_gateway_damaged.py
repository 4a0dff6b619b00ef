"""What is not as it was made is not handed out: it is named, with what makes it again."""

from __future__ import annotations

import io
import tarfile
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from fastapi import Response

from heterotissue.stages import load_stage
from services.gateway.api import zoom
from services.gateway.api.streams import TarMember, WantedHeaders, send_object, tar_stream
from shared.contracts.jobs import Marker
from shared.imaging.codec import encode_png
from shared.jobs import NoLeases, Reporter, execute
from shared.jobs.records import read_record, write_record
from shared.queue.tenants import ledger_of
from shared.storage import DamagedObjectError, DirectoryStore, StoreView, sha256
from shared.storage.formats import pack_tar, unpack_tar
from tests.gateway import Gateway
from tests.unit.test_gateway_datasets import BODY
from tests.unit.test_gateway_images import body as image_body
from tests.unit.test_gateway_images import label_map, text

BLACK = np.zeros((32, 32, 3), np.uint8)


class Fetched(StoreView):
    """A store whose objects must be fetched from a server."""

    def fetches(self) -> bool:
        return True


class Counted(Fetched):
    """Counts how often an object is read from its beginning."""

    opened = 0

    def open(self, key: str, start: int = 0) -> AbstractContextManager[IO[bytes]]:
        self.opened += start == 0
        return super().open(key, start)


def test_what_is_damaged_is_not_handed_out(gateway: Gateway) -> None:
    root, client = gateway.resources.root, gateway.client
    body = BODY | {"exports": ["folder"]}
    job = client.post("/v1/datasets", json=body).json()["job"]
    gateway.work(job)
    places = {
        "shards/000001.tar": ("archive", "shards", "files/shards/000001.tar"),
        "manifest.parquet": ("archive", "files/manifest.parquet"),
        "exports/folder/images/00000005.png": (
            "archive", "files/exports/folder/images/00000005.png",
        ),
        "preview.png": ("archive", "preview"),
        "README.md": ("archive", "card"),
        "croissant.json": ("archive", "croissant"),
    }  # fmt: skip
    for name, routes in places.items():
        key = f"datasets/d/{name}"
        whole = root.get(key)
        for damaged in (whole[:-1] + b"?", None):
            root.delete(key)
            if damaged is not None:
                root.put(key, damaged)
            for route in routes:
                answer = client.get(f"/v1/datasets/d/{route}")
                problem = answer.json()
                assert answer.status_code == 409, (name, route)
                assert key in problem["detail"]
                assert "'htd synthesize --dataset d' again" in problem["remedy"]
        root.put(key, whole)
    root.put("datasets/d/exports/folder/foreign.png", b"x")
    with tarfile.open(fileobj=io.BytesIO(client.get("/v1/datasets/d/archive").content)) as tar:
        assert "d/exports/folder/foreign.png" not in tar.getnames()
    root.delete("datasets/d/shards/000001.tar")
    assert client.post("/v1/datasets", json=body).json()["state"] == "running"  # as it was asked
    assert gateway.work(job).state == "done"
    assert client.get("/v1/datasets/d/archive").status_code == 200


@pytest.mark.parametrize("damage", ["gone", "older"])
def test_a_finished_dataset_is_whole_or_refused(gateway: Gateway, damage: str) -> None:
    root, client = gateway.resources.root, gateway.client
    body = BODY | {"exports": ["folder"]}
    job = client.post("/v1/datasets", json=body).json()["job"]
    gateway.work(job)
    key = f"jobs/{job}/done/shard-000000.json"
    marker, shard = read_record(root, key, Marker), "datasets/d/shards/000000.tar"
    root.delete(key)
    if damage == "older":  # with the shard as it was then
        root.put(shard, root.get("datasets/d/shards/000001.tar"))
        outputs = marker.outputs | {shard: sha256(root.get(shard))}
        write_record(root, key, marker.model_copy(update={"outputs": outputs}))
    for route in (
        "archive", "shards", "files/shards/000000.tar", "files/exports/folder/images/00000000.png",
    ):  # fmt: skip
        answer = client.get(f"/v1/datasets/d/{route}")
        assert (answer.status_code, shard in answer.json()["detail"]) == (409, True), route
        assert "'htd synthesize --dataset d' again" in answer.json()["remedy"]
    assert client.get("/v1/datasets/d/files/exports/folder/images/00000005.png").is_success
    assert client.get("/v1/datasets/d/files/shards/000007.tar").status_code == 404
    if damage == "gone":
        client.post("/v1/datasets", json=body)  # the remedy
        assert gateway.work(job).state == "done"
        assert client.get("/v1/datasets/d/archive").is_success


def test_the_preview_of_a_begun_dataset_is_of_its_own_shard(gateway: Gateway) -> None:
    root, client = gateway.resources.root, gateway.client
    gateway.work(client.post("/v1/datasets", json=BODY | {"dataset": "e", "seed": 1}).json()["job"])
    job = client.post("/v1/datasets", json=BODY).json()["job"]
    ledger, stage = ledger_of(gateway.config, job), load_stage("synthesize")
    for unit in ("plan", "shard-000000"):
        execute(
            ledger, stage, job, unit,
            leases=NoLeases(), reporter=Reporter(), config=gateway.config,
        )  # fmt: skip
    assert client.get("/v1/datasets/d/preview").is_success
    root.put("datasets/d/shards/000000.tar", root.get("datasets/e/shards/000000.tar"))
    assert client.get("/v1/datasets/d/preview").status_code == 409


def test_what_is_found_damaged_on_the_way_is_broken_off(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path)
    store, data = Fetched(inner), bytes(range(256)) * 9000
    members = [TarMember("a", "datasets/d/a", len(data), sha256(data))]
    inner.put("datasets/d/a", data)
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_stream(store, members)))) as tar:
        (file,) = map(tar.extractfile, tar)
        assert file is not None
        assert file.read() == data
    for damaged in (data[:-1] + b"?", data[:-1], b""):
        inner.put("datasets/d/a", damaged)
        sent = []
        with pytest.raises(DamagedObjectError, match="'htd synthesize --dataset d' again"):
            sent.extend(tar_stream(store, members))
        assert sum(map(len, sent)) < len(data)


def test_an_image_of_others_is_not_the_image_of_a_job(gateway: Gateway) -> None:
    root, client = gateway.resources.root, gateway.client
    given = image_body()
    asked = client.post("/v1/images", json=given, headers={"Prefer": "wait=0"})
    place = asked.headers["Location"]
    job = place.rpartition("/")[2]
    gateway.work(job)
    made = client.get(place)
    assert made.status_code == 200
    (key,) = (key for key in root.list("images/") if root.get(key) == made.content)
    for damage in (partial(root.delete, key), partial(root.put, key, encode_png(BLACK))):
        damage()
        refused = client.get(place)
        assert (refused.status_code, key in refused.json()["detail"]) == (409, True)
        assert "send the request that made it again" in refused.json()["remedy"]
    again = client.post("/v1/images", json=given, headers={"Prefer": "wait=0"})
    assert (again.status_code, again.headers["Location"]) == (202, place)
    gateway.work(job)
    assert client.get(place).content == made.content


def test_a_field_of_others_is_not_downloaded(gateway: Gateway) -> None:
    root, client = gateway.resources.root, gateway.client
    labels = np.tile(label_map(), (1, 2))
    given = image_body(field="f", labels=text(encode_png(labels)))
    answer = client.post("/v1/fields", json=given)
    assert answer.status_code == 202, answer.text
    gateway.work(answer.json()["job"])
    for file in ("slide.tiff", "labels.tiff", "regions.geojson"):
        place, key = f"/v1/fields/f/{file}", f"fields/f/{file}"
        assert client.get(place).status_code == 200
        root.put(key, root.get(key)[:-1] + b"?")
        refused = client.get(place)
        assert (refused.status_code, key in refused.json()["detail"]) == (409, True)


def test_a_field_of_others_is_not_shown(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it is opened, nor once it was open, nor to whoever has its tiles already."""
    monkeypatch.setattr(zoom, "FRESH_SECONDS", -1.0)
    root, client = gateway.resources.root, gateway.client
    for name, labels in (("f", label_map()), ("g", label_map()[::-1])):
        png = text(encode_png(np.tile(labels, (1, 2))))
        answer = client.post("/v1/fields", json=image_body(field=name, labels=png))
        assert gateway.work(answer.json()["job"]).state == "done"
    place = "/v1/fields/f"
    tiles = {
        "slide.tiff": ("deepzoom.dzi", "deepzoom_files/6/0_0.jpeg", "labels/6/0_0.png"),
        "labels.tiff": ("labels/6/0_0.png",),
    }
    for opened in (False, True):
        for file, shown in tiles.items():
            key = f"fields/f/{file}"
            whole = root.get(key)
            tags = [
                {"If-None-Match": client.get(f"{place}/{tile}").headers.get("ETag", "")}
                for tile in shown
                if opened
            ]
            root.put(key, root.get(f"fields/g/{file}"))
            for tile, headers in zip(shown, tags or [{}] * len(shown), strict=True):
                refused = client.get(f"{place}/{tile}", headers=headers)
                assert (refused.status_code, key in refused.text) == (409, True), tile
            root.put(key, whole)
            for tile in shown:
                assert client.get(f"{place}/{tile}").status_code == 200


def test_a_part_is_sent_only_of_what_is_as_it_was_made(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path)
    store, data = Counted(inner), bytes(range(256)) * 9000
    inner.put("datasets/d/a", data)

    def send(first: int) -> Response:
        wanted = WantedHeaders(range=f"bytes={first}-", if_range=None, if_none_match=None)
        return send_object(store, "datasets/d/a", wanted, "x/y", "a", sha256(data))

    for first in (1, 1000, len(data) - 1, 1000):
        assert send(first).status_code == 206
    assert store.opened == 1  # many parts of one object do not read it as often
    inner.put("datasets/d/a", data[:-1] + b"?")
    for first in (1, 1000):
        with pytest.raises(DamagedObjectError, match="'htd synthesize --dataset d' again"):
            send(first)
    assert store.opened == 2
    inner.delete("datasets/d/a")
    with pytest.raises(DamagedObjectError, match="missing"):
        send(1)


def test_readers_are_not_shown_other_pictures(gateway: Gateway) -> None:
    root, client = gateway.resources.root, gateway.client
    gateway.work(client.post("/v1/datasets", json=BODY).json()["job"])
    study = {"study": "s", "real": [{"regions": "toy"}], "synthetic": ["d"], "images": 6,
             "readers": ["Ann"]}  # fmt: skip
    for key in ("datasets/d/shards/000000.tar", "regions/toy/slide-c.tar"):
        whole = root.get(key)
        files = [
            (name, data if "mask" in name or name.endswith(".json") else encode_png(BLACK))
            for name, data in unpack_tar(whole)
        ]
        root.put(key, pack_tar(files))
        refused = client.post("/v1/reader-studies", json=study)
        assert refused.status_code == 422, refused.text
        assert f"{key.rpartition('/')[2]}" in refused.json()["detail"]
        assert "again, as it was run" in refused.json()["detail"]
        assert list(root.list("reader_studies/")) == []
        root.put(key, whole)
    assert client.post("/v1/reader-studies", json=study).status_code == 201
