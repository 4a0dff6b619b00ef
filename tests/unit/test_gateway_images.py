"""The HTTP API's single images, on a directory store."""

from __future__ import annotations

import base64
import io
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from shared.contracts.deploy import Deployment, deployment_key
from shared.contracts.regions import RegionSet, region_set_key, region_tar_key
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, parse_mark
from shared.imaging.region_sets import pack_regions
from shared.queue.sweeping import sweep
from shared.queue.tenants import tenant_ledger
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set, texture_region

NOW = {"Prefer": "wait=0"}


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    store = DirectoryStore(tmp_path)
    publish_toy_model(store, make_region_set(store))
    return Gateway(tmp_path)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def label_map(size: int = 32) -> np.ndarray:  # type: ignore[type-arg]
    labels = np.ones((size, size), np.uint8)
    labels[size // 2 :] = 2
    return labels


def huge_png(side: int) -> bytes:
    """A PNG of few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def body(**fields: Any) -> dict[str, Any]:
    crop = np.random.default_rng(0).integers(256, size=(12, 12, 3), dtype=np.uint8)
    return {
        "model": "toy",
        "steps": 2,
        "labels": text(encode_png(label_map())),
        "crops": [
            {"tissue": "tumor", "png": text(encode_png(crop))},
            {"tissue": "stroma", "regions": "toy", "region": "slide-a_0_0"},
        ],
    } | fields


def test_an_image_is_made_from_a_map_and_crops_and_says_so(gateway: Gateway) -> None:
    waiting = gateway.client.post("/v1/images", json=body(), headers=NOW)
    assert waiting.status_code == 202
    place = waiting.headers["Location"]
    assert gateway.client.get(place).status_code == 202
    assert gateway.work(place.rpartition("/")[2]).state == "done"
    made = gateway.client.get(place)
    assert (made.status_code, made.headers["Content-Type"]) == (200, "image/png")
    assert decode_png(made.content).shape == (32, 32, 3)
    xmp = Image.open(io.BytesIO(made.content)).info["XML:com.adobe.xmp"]
    assert parse_mark(xmp) == Mark("toy/1")
    again = gateway.client.post("/v1/images", json=body())
    assert (again.status_code, again.content) == (200, made.content)
    other = gateway.client.post("/v1/images", json=body(seed=1), headers=NOW)
    gateway.work(other.headers["Location"].rpartition("/")[2])
    assert gateway.client.get(other.headers["Location"]).content != made.content


def test_palettes_are_taken_by_their_indices(gateway: Gateway) -> None:
    picture = Image.fromarray(label_map(), mode="L")
    picture.putpalette([9] * 6 + [200, 0, 0])
    data = io.BytesIO()
    picture.save(data, format="PNG")
    place = gateway.client.post(
        "/v1/images", json=body(labels=text(data.getvalue()), crops=[]), headers=NOW
    ).headers["Location"]
    plain = gateway.client.post("/v1/images", json=body(crops=[]), headers=NOW)
    assert plain.headers["Location"] == place


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"model": "none"}, "#/model", "models/none/1"),
        ({"labels": text(encode_png(label_map(16)))}, "#/labels", "16×16 px"),
        ({"labels": text(encode_png(label_map() * 5))}, "#/labels", "holds 10"),
        ({"labels": text(b"GIF89a")}, "#/labels", "not a readable PNG"),
        ({"labels": "%%%"}, "#/labels", "not a readable PNG"),
        ({"labels": text(huge_png(100_000))}, "#/labels", "100000×100000 px"),
        ({"crops": [{"tissue": "bone", "png": "AAAA"}]}, "#/crops/0", "no tissue 'bone'"),
        ({"crops": [{"tissue": "tumor"}]}, "#/crops/0", "either png"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(
    gateway: Gateway, change: dict[str, Any], pointer: str, words: str
) -> None:
    answer = gateway.client.post("/v1/images", json=body(**change), headers=NOW)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(("limit", "status"), [(100, 422), (101, 202), (None, 202)])
def test_crops_beyond_a_plan_are_refused_before_the_queue(
    gateway: Gateway, limit: int | None, status: int
) -> None:
    store = gateway.resources.root
    record = Deployment(
        number=1, version="1", engine="tensorrt", sha256={}, max_tokens=limit, factor=2
    )
    store.put_json(deployment_key("toy", 1), record)
    crop = {"tissue": "tumor", "png": text(encode_png(np.zeros((20, 20, 3), np.uint8)))}
    answer = gateway.client.post("/v1/images", json=body(crops=[crop]), headers=NOW)
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["errors"][0]["pointer"] == "#/crops"
        assert "101 tokens, and the model's TensorRT plan takes 100" in answer.json()["detail"]


def test_crops_are_cut_from_sets_of_ready_tiles(gateway: Gateway) -> None:
    """Their regions are named after slide and tile, `<slide>_<tile>_<x>_<y>`."""
    key, store = "slide-a_0-tile_64_0", gateway.resources.root
    record = store.get_model(region_set_key("toy"), RegionSet)
    slides = tuple(part.model_copy(update={"regions": 1}) for part in record.slides)
    copy = record.model_copy(update={"name": "tiles", "slides": slides})
    store.put_json(region_set_key("tiles"), copy)
    region = texture_region(key, "slide-a", 64, np.random.default_rng(0))
    store.put(region_tar_key("tiles", "slide-a"), pack_regions([region]))
    crops = [{"tissue": "tumor", "regions": "tiles", "region": key}]
    answer = gateway.client.post("/v1/images", json=body(crops=crops), headers=NOW)
    job = answer.headers["Location"].rpartition("/")[2]
    status = gateway.work(job)
    assert status.state == "done", status.failed


def test_what_only_the_worker_sees_is_told(gateway: Gateway) -> None:
    crops = [{"tissue": "tumor", "regions": "toy", "region": "slide-a_9_9"}]
    place = gateway.client.post("/v1/images", json=body(crops=crops), headers=NOW).headers[
        "Location"
    ]
    gateway.work(place.rpartition("/")[2])
    answer = gateway.client.get(place)
    assert answer.status_code == 422
    assert "no region 'slide-a_9_9'" in answer.json()["detail"]


@pytest.mark.parametrize("tenant", ["local", "acme"])
def test_single_images_are_removed_when_they_are_old(gateway: Gateway, tenant: str) -> None:
    gateway.client.put("/v1/tenants/acme", json={})
    ledger = tenant_ledger(gateway.config, tenant)
    store = ledger.store
    publish_toy_model(store, make_region_set(store))
    client = gateway.holding("read", "generate", tenant=tenant)
    made, waiting = (
        client.post("/v1/images", json=body(seed=seed), headers=NOW).headers["Location"]
        for seed in (1, 2)
    )
    gateway.work(made.rpartition("/")[2])
    asked = {"dataset": "d", "model": "toy", "images": 1, "steps": 1}
    key = {"Idempotency-Key": "k"}
    job = client.post("/v1/datasets", json=asked, headers=key).json()["job"]
    gateway.work(job)
    kept, now = timedelta(days=30), datetime.now(UTC)
    assert sweep(ledger, kept, now + timedelta(days=6)) == 0
    assert sweep(ledger, kept, now + timedelta(days=8)) == 1
    assert list(store.list("idempotency/")) == []
    assert client.get(made).status_code == 200
    assert sweep(ledger, kept, now + timedelta(days=31)) == 3  # the image and both inputs
    assert client.get(made).status_code == 404
    assert list(store.list("images/")) == []
    assert client.get(waiting).status_code == 202  # it is open
    assert client.get("/v1/datasets/d").json()["state"] == "done"
    again = client.post("/v1/images", json=body(seed=1), headers=NOW).headers["Location"]
    assert again == made
    gateway.work(made.rpartition("/")[2])
    assert client.get(made).status_code == 200


def test_a_form_with_files_is_the_same_request(gateway: Gateway) -> None:
    plain = body()
    job = gateway.client.post("/v1/images", json=plain, headers=NOW).headers["Location"]
    bare = [{"tissue": "tumor"}, plain["crops"][-1]]
    said = {"model": "toy", "steps": 2, "crops": bare}
    labels = base64.b64decode(plain["labels"])
    crop = base64.b64decode(plain["crops"][0]["png"])
    files = [("labels", ("map.png", labels)), ("crops", ("crop.png", crop))]

    def send(said: Any, files: Any = files) -> Any:
        form = {"request": json.dumps(said)}
        return gateway.client.post("/v1/images", data=form, files=files, headers=NOW)

    answer = send(said)
    assert (answer.status_code, answer.headers["Location"]) == (202, job), answer.text
    for wrong, words in (
        (send(said, files[:1]), "1 crops of `request` need a file, but the form has 0 files"),
        (send(said, files[1:]), "one file `labels`"),
        (send([1]), "must be a JSON object"),
        (send(said | {"colour": 1}), "there is no such field"),
        (gateway.client.post("/v1/images", content=b"{}"), "not understood"),
    ):
        assert wrong.status_code == 422
        assert words in wrong.json()["detail"]
    assert send(said | {"colour": 1}).json()["errors"][0]["pointer"] == "#/colour"


def test_a_field_is_submitted_and_refused_by_its_parts(gateway: Gateway) -> None:
    labels = np.tile(label_map(), (1, 2))
    given = body(field="f", labels=text(encode_png(labels)))
    sent = gateway.client.post("/v1/fields", json=given)
    assert sent.status_code == 202, sent.text
    assert gateway.work(sent.json()["job"]).state == "done"
    record = gateway.client.get("/v1/fields/f").json()
    assert (record["width"], record["height"]) == (64, 32)
    slide = gateway.client.get("/v1/fields/f/slide.tiff")
    assert slide.content[:2] == b"II"
    small = gateway.client.post("/v1/fields", json=given | {"labels": text(encode_png(labels[:8]))})
    assert small.status_code == 422
    assert "64×8 px: send at least 32×32 px" in small.json()["detail"]
    assert gateway.client.get("/v1/fields/g/slide.tiff").status_code == 404
