"""The HTTP API's slides, tiles and crops, on a directory store."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from pathlib import Path

import numpy as np
import openslide
import pytest
from httpx2 import Response
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from services.gateway.api import receiving, slide_lookup, slide_threads, turns, zoom
from services.gateway.api.problems import ProblemError
from shared.errors import InputError
from shared.imaging.codec import decode_png
from shared.imaging.label_map import LabelMap
from shared.phantom import PHANTOM_CLASSES
from shared.storage import DirectoryStore
from tests.gateway import Gateway


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def ingest(gateway: Gateway, phantom: Path) -> None:
    """Upload the phantom and its annotation, and ingest it as the API says."""
    client = gateway.client
    client.put("/v1/slides/p/source/p.tiff", content=phantom.read_bytes())
    annotation = phantom.with_suffix(".geojson").read_bytes()
    info = client.put("/v1/slides/p/annotation/p.geojson", content=annotation).json()
    body = {
        "cohort": "c",
        "slides": [{"slide": "p", "source": info["source"], "labels": info["annotation"]}],
        "classes": PHANTOM_CLASSES.model_dump(mode="json"),
        "patches": {"size": 64, "mpp": 1.0, "stride": 64},
        "regions": {"size": 64, "mpp": 1.0},
    }
    answer = client.post("/v1/ingest", json=body)
    assert answer.status_code == 202, answer.text
    assert gateway.work(answer.json()["job"]).state == "done"


def test_slides_come_in_and_are_ingested(gateway: Gateway, phantom: Path) -> None:
    ingest(gateway, phantom)
    client = gateway.client
    info = client.get("/v1/slides/p").json()
    assert info["record"]["width"] == 1500
    assert info["files"]["slides/p/source/p.tiff"] == phantom.stat().st_size
    assert (
        client.get("/v1/slides/p/annotation").content
        == phantom.with_suffix(".geojson").read_bytes()
    )
    assert client.get("/v1/slides/p/labels.tif").content[:2] in (b"II", b"MM")
    assert [item["slide"] for item in client.get("/v1/slides").json()["items"]] == ["p"]
    client.put("/v1/slides/p/annotation/p.xml", content=b"<x/>")
    assert client.get("/v1/slides/p").json()["annotation"] == "slides/p/annotation/p.xml"
    assert client.delete("/v1/slides/p").status_code == 204
    assert client.get("/v1/slides/p").status_code == 404


def test_tiles_are_openslides_own(gateway: Gateway, phantom: Path) -> None:
    ingest(gateway, phantom)
    client = gateway.client
    with openslide.OpenSlide(phantom) as slide:
        expected = DeepZoomGenerator(slide, 254, 1, limit_bounds=False)
        assert client.get("/v1/slides/p/deepzoom.dzi").text == expected.get_dzi("jpeg")
        top = expected.level_count - 1
        for level, column, row in ((top, 2, 1), (top - 2, 0, 0), (0, 0, 0)):
            tile = client.get(f"/v1/slides/p/deepzoom_files/{level}/{column}_{row}.jpeg")
            assert tile.headers["Cache-Control"] == "private, max-age=3600"
            body = io.BytesIO()
            expected.get_tile(level, (column, row)).save(body, "JPEG", quality=80)
            assert tile.content == body.getvalue()
            tag = {"If-None-Match": tile.headers["ETag"]}
            assert client.get(str(tile.url), headers=tag).status_code == 304
        assert client.get(f"/v1/slides/p/deepzoom_files/{top}/99_0.jpeg").status_code == 404
        assert client.get("/v1/slides/p/deepzoom_files/60/0_0.jpeg").status_code == 404


def test_tiles_follow_what_they_are_cut_from(
    gateway: Gateway, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(gateway, phantom)
    monkeypatch.setattr(zoom, "FRESH_SECONDS", -1.0)
    place, key = "/v1/slides/p/labels/0/0_0.png", "slides/p/labels/c.tif"
    before = gateway.client.get(place).headers["ETag"]
    assert gateway.client.get(place).headers["ETag"] == before
    gateway.resources.root.put(key, gateway.resources.root.get(key))  # of the same size
    assert gateway.client.get(place).headers["ETag"] != before


def test_a_download_keeps_a_name_that_is_not_ascii(gateway: Gateway) -> None:
    place = "/v1/slides/a/annotation"
    gateway.client.put(f"{place}/h\u00e9 \u6f22.geojson", content=b"{}").raise_for_status()
    answer = gateway.client.get(place)
    assert (answer.status_code, answer.content) == (200, b"{}")
    said = answer.headers["Content-Disposition"]
    assert said == "attachment; filename*=UTF-8''h%C3%A9%20%E6%BC%A2.geojson"


def crop(gateway: Gateway, **square: float) -> Response:
    return gateway.client.get("/v1/slides/p/crop.png", params=square)


def test_a_crop_is_the_place_at_the_scale_that_was_asked_for(
    gateway: Gateway, phantom: Path
) -> None:
    """The phantom has 0.5 µm per pixel."""
    ingest(gateway, phantom)
    answer = crop(gateway, x=300, y=200, side=64, mpp=0.5)
    assert answer.headers["Content-Type"] == "image/png"
    with openslide.OpenSlide(phantom) as slide:
        expected = np.asarray(slide.read_region((300, 200), 0, (64, 64)).convert("RGB"))
    np.testing.assert_array_equal(decode_png(answer.content), expected)
    means = expected.reshape(16, 4, 16, 4, 3).mean((1, 3))
    coarse, beside = (
        decode_png(crop(gateway, x=x, y=200, side=16, mpp=2.0).content) for x in (300, 304)
    )
    assert coarse.shape == (16, 16, 3)
    assert np.abs(coarse - means).mean() < 8 < np.abs(beside - means).mean()  # levels are JPEG
    for square in ({"x": 1436, "y": 1136, "side": 64}, {"x": 0, "y": 0, "side": 1}):
        assert crop(gateway, **square, mpp=0.5).status_code == 200, square
    again = gateway.client.get(str(answer.url), headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("square", "words"),
    [
        ({"x": 1437, "y": 0, "side": 64, "mpp": 0.5}, "do not lie on the slide"),
        ({"x": 0, "y": 1137, "side": 64, "mpp": 0.5}, "do not lie on the slide"),
        ({"x": 0, "y": 0, "side": 64, "mpp": 900}, "do not lie on the slide"),
        ({"x": 0, "y": 0, "side": 64, "mpp": 0.25}, "too coarse for the 0.25"),
        ({"x": 0, "y": 0, "side": 1025, "mpp": 0.5}, "side: "),
        ({"x": -1, "y": 0, "side": 64, "mpp": 0.5}, "x: "),
        ({"x": 0, "y": 0, "side": 64, "mpp": float("nan")}, "mpp: "),
        ({"x": 0, "y": 0, "side": 64, "mpp": float("inf")}, "mpp: "),
        ({"x": 0, "y": 0, "side": 64}, "mpp: "),
    ],
)
def test_no_crop_where_there_is_none(
    gateway: Gateway, phantom: Path, square: dict[str, float], words: str
) -> None:
    ingest(gateway, phantom)
    answer = crop(gateway, **square)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_a_crop_reads_no_more_of_a_slide_than_a_few_tiles(
    gateway: Gateway, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(gateway, phantom)
    monkeypatch.setattr(zoom, "MAX_CROP_SPAN", 255)
    answer = crop(gateway, x=0, y=0, side=64, mpp=2.0)
    assert (answer.status_code, "spans 256 px" in answer.json()["detail"]) == (422, True)


def test_crops_are_of_ones_own_ingested_slides(gateway: Gateway, phantom: Path) -> None:
    square = {"x": 0, "y": 0, "side": 64, "mpp": 0.5}
    assert crop(gateway, **square).status_code == 404
    gateway.client.put("/v1/slides/p/source/p.tiff", content=phantom.read_bytes())
    answer = crop(gateway, **square)
    assert (answer.status_code, "has not been ingested" in answer.json()["detail"]) == (404, True)
    ingest(gateway, phantom)
    place = "/v1/slides/p/crop.png"
    assert gateway.holding("read").get(place, params=square).status_code == 200
    assert gateway.holding("generate").get(place, params=square).status_code == 403
    stranger = gateway.holding("read", tenant="acme")
    assert stranger.get(place, params=square).status_code == 404


def test_slow_slides_leave_threads_for_the_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> None:
        here.release()
        go_on.wait(60)
        raise ProblemError(404, "no-slide", "there is no slide")

    monkeypatch.setattr(zoom.Zooms, "get", slow)

    async def look() -> None:
        async with gateway.connected() as client:
            place = "/v1/slides/{}/deepzoom_files/9/0_0.jpeg"
            names = ["a"] * 41 + ["b"] * 41
            asked = [asyncio.create_task(client.get(place.format(name))) for name in names]
            for _ in range(slide_threads.THREADS_PER_TENANT):
                await asyncio.to_thread(here.acquire)  # b is not kept waiting by a
            other = dict(gateway.holding("read", tenant="beta").headers)
            asked += [
                asyncio.create_task(client.get(place.format(name), headers=other)) for name in "ab"
            ]
            for _ in "ab":
                await asyncio.to_thread(here.acquire)  # nor is another tenant
            for path in ("/healthz", "/v1/slides"):
                answer = await asyncio.wait_for(client.get(path), 30)
                assert answer.status_code == 200
            go_on.set()
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {404}

    try:
        asyncio.run(look())
    finally:
        go_on.set()


@pytest.mark.parametrize("place", ["/v1/slides/big", "/slides/big"])
def test_what_is_slow_for_a_tenant_leaves_threads_for_the_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    here, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> None:
        here.release()
        go_on.wait(60)

    monkeypatch.setattr(slide_lookup, "slide_info", slow)
    theirs = dict(gateway.holding("read", tenant="acme").headers)

    async def look() -> None:
        async with gateway.connected() as client:
            asked = [asyncio.create_task(client.get(place, headers=theirs)) for _ in range(80)]
            for _ in range(turns.ANSWERED_PER_TENANT):
                await asyncio.to_thread(here.acquire)
            answer = await asyncio.wait_for(client.get("/v1/models"), 30)
            assert answer.status_code == 200
            go_on.set()
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {404}

    try:
        asyncio.run(look())
    finally:
        go_on.set()


def test_the_files_of_a_slide_are_listed_and_have_an_end(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "MAX_FILES", 2)
    client = gateway.client
    for name in ("a.dcm", "b.dcm"):
        assert client.put(f"/v1/slides/s/source/{name}", content=b"xy").status_code == 200
    for refused in (
        client.put("/v1/slides/s/source/c.dcm", content=b"x"),
        client.post("/v1/slides/s/uploads", json={"file": "c.dcm", "bytes": 1}),
    ):
        assert (refused.status_code, "has 2 files" in refused.json()["detail"]) == (409, True)
    assert client.put("/v1/slides/s/source/a.dcm", content=b"xyz").status_code == 200

    def no_call(*_: object) -> None:
        raise AssertionError("a call for one of the files")

    monkeypatch.setattr(DirectoryStore, "stat", no_call)
    assert client.get("/v1/slides/s").json()["files"] == {
        "slides/s/source/a.dcm": 3, "slides/s/source/b.dcm": 2,
    }  # fmt: skip


def test_a_slide_that_ends_its_reader_is_opened_again(
    gateway: Gateway, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(gateway, phantom)
    tile = "/v1/slides/p/deepzoom_files/0/0_0.jpeg"
    assert gateway.client.get(tile).status_code == 200
    (slot,) = gateway.app.state.zooms._slots.values()
    os.kill(slot.zoom.slide._file.pid, signal.SIGKILL)
    lost = gateway.client.get(tile)
    assert (lost.status_code, "cannot be read" in lost.json()["detail"]) == (422, True)
    assert gateway.client.get(tile).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(zoom, "MAX_TILE_SPAN", 0)
        refused = gateway.client.get(tile)
        assert (refused.status_code, "coarse enough" in refused.json()["detail"]) == (422, True)
    for _ in range(zoom.MAX_LOSSES - 1):  # but not for ever
        os.kill(slot.zoom.slide._file.pid, signal.SIGKILL)
        last = [gateway.client.get(tile) for _ in range(2)][1]
    assert (last.status_code, "3 times" in last.json()["detail"]) == (422, True)
    monkeypatch.setattr(zoom, "REFUSED_SECONDS", 0.0)
    assert gateway.client.get(tile).status_code == 200


def test_a_slide_that_cannot_be_opened_is_tried_once(
    gateway: Gateway, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(gateway, phantom)
    tried: list[Path] = []

    def fail(path: Path) -> None:
        tried.append(path)
        raise InputError("it is damaged")

    monkeypatch.setattr(zoom, "open_source", fail)
    answers = [gateway.client.get("/v1/slides/p/deepzoom_files/0/0_0.jpeg") for _ in range(3)]
    assert {answer.json()["detail"] for answer in answers} == {"it is damaged"}
    assert len(tried) == 1


@pytest.mark.parametrize("back", [0, 2, 6])
def test_label_tiles_lie_over_the_slides(gateway: Gateway, phantom: Path, back: int) -> None:
    ingest(gateway, phantom)
    with openslide.OpenSlide(phantom) as slide:
        zoom = DeepZoomGenerator(slide, 254, 1, limit_bounds=False)
        level = zoom.level_count - 1 - back
        spot = (1, 2) if back == 0 else (0, 0)
        corner = zoom.get_tile_coordinates(level, spot)[0]
        size = zoom.get_tile_dimensions(level, spot)
        place = f"/v1/slides/p/labels/{level}/{spot[0]}_{spot[1]}.png"
        data = gateway.client.get(place, params={"cohort": "c"}).content
    with Image.open(io.BytesIO(data)) as tile:
        assert (tile.mode, tile.size) == ("P", size)
        colors = np.asarray(tile.getpalette()).reshape(-1, 3)
        assert colors[1].tolist() == list(PHANTOM_CLASSES.colors[1])
        shown, alpha = np.asarray(tile), np.asarray(tile.convert("RGBA"))[..., 3]
    with LabelMap(gateway.resources.root.local("slides/p/labels/c.tif")) as labels:
        expected = labels.read(*corner, size, labels.mpp * 0.5 * 2**back, (labels.mpp * 0.5,) * 2)
    assert (shown == expected).mean() > (0.995 if back < 6 else 0.8)
    assert ((alpha > 0) == (shown > 0)).all()
    assert gateway.client.get(place.replace("/p/", "/q/")).status_code == 404


def test_slides_of_the_store_are_registered(gateway: Gateway, phantom: Path) -> None:
    gateway.resources.root.put_file("incoming/p.tiff", phantom)
    body = {"slide": "r", "source": "incoming/p.tiff"}
    assert gateway.client.post("/v1/slides", json=body).json()["source"] == "incoming/p.tiff"
    assert gateway.client.get("/v1/slides/r/deepzoom.dzi").status_code == 200
    for wrong in ("incoming/none.tiff", "../p.tiff", "/etc/passwd"):
        answer = gateway.client.post("/v1/slides", json={"slide": "r", "source": wrong})
        assert answer.status_code == 422, wrong
        assert answer.json()["errors"][0]["pointer"] == "#/source"
