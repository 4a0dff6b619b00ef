"""The HTTP API's single images, on a directory store."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
from fastapi import Response
from PIL import Image

from services.gateway.api import fields as gateway_fields
from services.gateway.api import images as gateway_images
from services.gateway.api import turns
from services.gateway.api.access import Caller
from services.gateway.api.limits import Limits
from services.gateway.api.problems import ProblemError
from shared.contracts.deploy import Deployment, deployment_key
from shared.contracts.field_bodies import FieldBody
from shared.contracts.models import ModelRef
from shared.contracts.regions import RegionSet, region_set_key, region_tar_key
from shared.imaging import sandboxed_mask
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, parse_mark
from shared.imaging.region_sets import pack_regions
from shared.models import read_model
from shared.queue.sweeping import sweep
from shared.queue.tenants import tenant_ledger
from shared.storage import sha256
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set, texture_region

NOW = {"Prefer": "wait=0"}


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


def test_a_request_without_a_version_is_for_the_newest(gateway: Gateway) -> None:
    first = gateway.client.post("/v1/images", json=body(crops=[]), headers=NOW)
    store = gateway.resources.root
    for key in list(store.list("models/toy/1/")):
        store.put(key.replace("toy/1", "toy/2"), store.get(key))
    record = read_model(store, ModelRef("toy", "1"))
    store.put_json(ModelRef("toy", "2").key, record.model_copy(update={"version": "2"}))
    places = [
        gateway.client.post("/v1/images", json=body(crops=[], **given), headers=NOW).headers[
            "Location"
        ]
        for given in ({}, {"version": "newest"}, {"version": "2"}, {"version": "1"})
    ]
    assert places[0] == places[1] == places[2] != places[3]
    assert places[3] == first.headers["Location"]
    request = gateway.resources.ledger("local").request(places[0].rpartition("/")[2])
    assert request["version"] == "2"


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"model": "none"}, "#/model", "no model 'none': it holds toy/1"),
        ({"labels": text(encode_png(label_map(16)))}, "#/labels", "16×16 px"),
        (
            {"labels": text(encode_png(label_map() * 5))},
            "#/labels",
            "[5, 10]; the labels of toy/1 are",
        ),
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
    tar = pack_regions([texture_region(key, "slide-a", 64, np.random.default_rng(0))])
    changed = {"regions": 1, "sha256": sha256(tar)}
    slides = tuple(part.model_copy(update=changed) for part in record.slides)
    copy = record.model_copy(update={"name": "tiles", "slides": slides})
    store.put_json(region_set_key("tiles"), copy)
    store.put(region_tar_key("tiles", "slide-a"), tar)
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
    assert sweep(ledger, kept, now + timedelta(days=31)) == 1  # the image, but not its inputs
    assert client.get(made).status_code == 404
    assert len(list(store.list("images/"))) == 2
    assert client.get(waiting).status_code == 202  # it is open, and has the same inputs
    ledger.cancel(waiting.rpartition("/")[2])
    assert sweep(ledger, kept, now + timedelta(days=31)) == 3  # the job and both inputs
    assert list(store.list("images/")) == []
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


@pytest.mark.parametrize("crops", [["abc"], [[1]], [5], "abc", {"a": 1}, [None], 7])
def test_crops_of_a_form_are_objects(gateway: Gateway, crops: Any) -> None:
    files = [(name, (f"{name}.png", b"x")) for name in ("labels", "crops")]
    data = {"request": json.dumps({"model": "toy", "crops": crops})}
    answer = gateway.client.post("/v1/images", data=data, files=files)
    assert answer.status_code == 422
    assert "`crops` in it a list of such objects" in answer.json()["detail"]


def test_what_a_field_takes_is_counted_before_anything_is_decoded(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[tuple[str, int]] = []

    @contextmanager
    def spending(
        self: Limits, tenant: str, quota: str, amount: int, limit: int | None
    ) -> Iterator[None]:
        spent.append((quota, amount))
        if limit == 0:
            raise ProblemError(429, "quota", "none is left")
        try:
            yield
        except BaseException:
            spent.append((quota, -amount))
            raise

    monkeypatch.setattr(Limits, "spending", spending)
    monkeypatch.setattr(sandboxed_mask, "open_sandboxed", None)  # no child starts
    labels = encode_png(np.tile(label_map(), (3, 3))[:70, :90])
    given = body(field="q", labels=text(labels))
    gateway.client.put("/v1/tenants/local", json={"images_per_day": 0})
    assert gateway.client.post("/v1/fields", json=given).status_code == 429
    assert spent == [("images", 7)]  # 90 x 70 px, of 32 x 32 px an image
    spent.clear()
    gateway.client.put("/v1/tenants/local", json={})
    with pytest.raises(TypeError):
        gateway_fields._submit(caller(gateway), FieldBody.model_validate(given))
    sent = len(labels) + len(base64.b64decode(given["crops"][0]["png"]))
    counted = [("images", 7), ("upload_bytes", sent)]
    assert spent == [*counted, ("upload_bytes", -sent), ("images", -7)]  # it is refused later
    spent.clear()
    for sides, words in (
        ((40_000, 100), "at most 32768 px"),
        ((30_000, 30_000), "500 million pixels"),
        ((31, 400), "at least 32"),
        ((0, 0), "at least 32"),
    ):
        stated = labels[:16] + b"".join(side.to_bytes(4, "big") for side in sides) + labels[24:]
        answer = gateway.client.post("/v1/fields", json=given | {"labels": text(stated)})
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True)
    for wrong in (b"", labels[:20], b"GIF89a" + labels, labels[:8] + labels[33:]):
        answer = gateway.client.post("/v1/fields", json=given | {"labels": text(wrong)})
        assert "not a readable PNG" in answer.json()["detail"]
    assert spent == []


def caller(gateway: Gateway) -> Caller:
    resources = gateway.resources
    (token,) = resources.tokens.all("local")
    return Caller(token, resources, resources.ledger("local"), lambda: token)


def test_pictures_of_one_tenant_leave_threads_for_the_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> None:
        here.release()
        go_on.wait(60)
        raise ProblemError(422, "invalid", "it is wrong")

    monkeypatch.setattr(gateway_fields, "pinned", slow)
    monkeypatch.setattr(gateway_images, "pinned", slow)
    acme, beta = (dict(gateway.holding("generate", tenant=name).headers) for name in "ab")
    given, field = body(), body(field="f")

    async def ask() -> None:
        async with gateway.connected() as client:

            def post(place: str, headers: dict[str, str]) -> asyncio.Task[Any]:
                sent = field if place == "/v1/fields" else given
                return asyncio.create_task(client.post(place, json=sent, headers=headers))

            most = turns.DECODING_PER_TENANT + turns.QUEUED_PER_TENANT
            asked = [post(("/v1/fields", "/v1/images")[n % 2], acme) for n in range(most)]
            for _ in range(turns.DECODING_PER_TENANT):
                await asyncio.to_thread(here.acquire)
            asked += [post(place, beta) for place in ("/v1/fields", "/v1/images")]
            for _ in range(2):
                await asyncio.to_thread(here.acquire)
            answer = await asyncio.wait_for(client.get("/healthz"), 30)
            assert answer.status_code == 200
            while (
                turns._decoding.of(0, f"{gateway.resources.root.url}/tenants/a")
                .statistics()
                .tasks_waiting
                < turns.QUEUED_PER_TENANT
            ):
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/fields", json=field, headers=acme)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
            go_on.set()
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {422}

    try:
        asyncio.run(ask())
    finally:
        go_on.set()


def test_few_requests_of_a_token_wait(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAITING_PER_TOKEN", 1)
    waited: list[float] = []

    async def wait(caller: Caller, job: str, seconds: float) -> Response:
        waited.append(seconds)
        if len(waited) == 1:
            await seat(caller, job, 20.0)
        return Response()

    seat = turns.seated(wait)
    asyncio.run(seat(caller(gateway), "image-0", 20.0))
    asyncio.run(seat(caller(gateway), "image-0", 20.0))
    assert waited == [20.0, 0.0, 20.0]


def test_inputs_of_fields_are_removed_when_they_are_old(gateway: Gateway) -> None:
    ledger = tenant_ledger(gateway.config, "local")
    given = body(field="f", labels=text(encode_png(np.tile(label_map(), (1, 2)))))
    job = gateway.client.post("/v1/fields", json=given).json()["job"]
    ledger.store.put("fields/inputs/other.tif", b"x")
    kept, now = timedelta(days=30), datetime.now(UTC)
    assert sweep(ledger, kept, now + timedelta(days=29)) == 0
    assert sweep(ledger, kept, now + timedelta(days=31)) == 1  # the job is open
    assert len(list(ledger.store.list("fields/inputs/"))) == 2
    ledger.cancel(job)
    assert sweep(ledger, kept, now + timedelta(days=31)) == 2
