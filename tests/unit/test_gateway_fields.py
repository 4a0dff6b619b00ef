"""The HTTP API's fields, on a directory store."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from heterotissue.cli.field_maps import put_labels as put_mask
from shared.contracts.base import Classes
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key, label_map_key
from shared.contracts.models import ModelRef
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.label_map import write_label_map
from shared.imaging.marks import Mark, parse_mark
from shared.models import read_model
from shared.storage import DirectoryStore, sha256
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import CLASSES, make_region_set


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("store")
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store))
    return Gateway(folder)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def label_map() -> np.ndarray:  # type: ignore[type-arg]
    labels = np.ones((32, 32), np.uint8)
    labels[16:] = 2
    return labels


def body(**fields: Any) -> dict[str, Any]:
    crop = np.random.default_rng(0).integers(256, size=(12, 12, 3), dtype=np.uint8)
    return {
        "model": "toy",
        "steps": 2,
        "crops": [
            {"tissue": "tumor", "png": text(encode_png(crop))},
            {"tissue": "stroma", "regions": "toy", "region": "slide-a_0_0"},
        ],
    } | fields


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
    head = gateway.client.head("/v1/fields/f/slide.tiff")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(slide.content))
    assert gateway.client.head("/v1/fields/none").status_code == 404
    assert gateway.holding().head("/v1/fields/f").status_code == 403
    check_tiles_of_field(gateway, record, labels, slide.content)
    (item,) = gateway.client.get("/v1/fields").json()["items"]
    assert (item["field"], item["status"]["state"], item["record"]) == ("f", "done", record)
    small = gateway.client.post("/v1/fields", json=given | {"labels": text(encode_png(labels[:8]))})
    assert small.status_code == 422
    assert "64×8 px: send at least 32×32 px" in small.json()["detail"]
    assert gateway.client.get("/v1/fields/g/slide.tiff").status_code == 404
    waiting = gateway.client.post("/v1/fields", json=given | {"field": "e"}).json()["job"]
    first, second = gateway.client.get("/v1/fields").json()["items"]
    assert (first["status"]["job"], first["record"], second) == (waiting, None, item)
    page = gateway.client.get("/v1/fields", params={"limit": 1}).json()
    assert (page["items"], page["next"]) == ([first], "e")
    for place in ("e", "e/slide.tiff"):
        early = gateway.client.get(f"/v1/fields/{place}")
        assert (early.status_code, early.headers["Retry-After"]) == (409, "5")
        assert f"field 'e' is not there: its job {waiting} is" in early.json()["detail"]
    taken = gateway.client.post("/v1/fields", json=given | {"field": "e", "seed": 9})
    assert (taken.status_code, "replace" in taken.text) == (409, False)
    assert taken.json()["remedy"] == "choose another name, or delete what has this one"
    missing = gateway.client.get("/v1/fields/e/deepzoom.dzi")
    assert (missing.status_code, "fields/e/field.json" in missing.text) == (404, True)
    check_pages(gateway, waiting)
    other = gateway.holding("read", "generate", tenant="other")
    for place in TILES:
        assert other.get(f"/v1/fields/f/{place}").status_code == 404
    assert other.get("/v1/fields").json()["items"] == []
    assert other.get("/fields/f").status_code == 404
    assert "No field yet" in other.get("/fields").text
    assert other.delete("/v1/fields/f").status_code == 404
    refused = gateway.client.delete("/v1/fields/e")
    assert (refused.status_code, "fields/e is being made" in refused.text) == (409, True)
    gateway.client.post(f"/v1/jobs/{waiting}/cancel")
    gone = gateway.client.get("/v1/fields/e")
    assert (gone.status_code, f"{waiting} is cancelled" in gone.json()["detail"]) == (409, True)
    for name in ("e", "f"):
        assert gateway.client.delete(f"/v1/fields/{name}").status_code == 204
        assert gateway.client.delete(f"/v1/fields/{name}").status_code == 404
    uploads = gateway.resources.root.list("fields/")
    assert all(key.startswith("fields/inputs/") for key in uploads)
    reserved = gateway.client.post("/v1/fields", json=given | {"field": "inputs"})
    assert (reserved.status_code, "folder of uploaded" in reserved.text) == (422, True)
    assert gateway.client.get("/v1/fields").json()["items"] == []


def check_pages(gateway: Gateway, waiting: str) -> None:
    """Check the pages of the finished field f and the field e, which waits."""
    pages = {
        place: gateway.client.get(place)
        for place in ("/fields", "/fields/new", "/fields/f", "/fields/e")
    }
    for place, page in pages.items():
        assert page.status_code == 200, place
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)
        for address in re.findall(r'(?:src|href)="(/(?:static|v1)[^"]+)"', page.text):
            assert gateway.client.get(address).status_code == 200, address
    assert f'data-job="{waiting}"' in pages["/fields/e"].text
    assert 'src="/v1/fields/f/deepzoom_files/6/0_0.jpeg"' in pages["/fields"].text
    assert gateway.holding("read").get("/fields/new").status_code == 403
    missing = gateway.client.get("/fields/none")
    assert (missing.status_code, "no field &#39;none&#39;" in missing.text) == (404, True)


TILES = ("deepzoom.dzi", "deepzoom_files/6/0_0.jpeg", "labels/6/0_0.png")


def check_tiles_of_field(
    gateway: Gateway,
    record: dict[str, Any],
    labels: np.ndarray,  # type: ignore[type-arg]
    slide: bytes,
) -> None:
    """Check the tiles of the finest level, which one tile covers."""
    dzi, tile, over = (gateway.client.get(f"/v1/fields/f/{place}") for place in TILES)
    assert 'Width="64"' in dzi.text
    with tifffile.TiffFile(io.BytesIO(slide)) as tiff:
        pixels = Image.fromarray(tiff.pages.first.asarray()).convert("L")
    with Image.open(io.BytesIO(tile.content)) as jpeg:
        apart = np.asarray(jpeg.convert("L")).astype(int) - np.asarray(pixels)
    assert np.abs(apart).mean() < 8  # of quality 80, of pixels that are noise
    for picture in (tile, over):
        with Image.open(io.BytesIO(picture.content)) as marked:
            assert parse_mark(marked.info["xmp"]) == Mark("toy/1", "f")
    colors = np.array([item["color"] for item in record["classes"]["items"]])
    with Image.open(io.BytesIO(over.content)) as png:
        np.testing.assert_array_equal(np.asarray(png.convert("RGB")), colors[labels])
    tag = {"If-None-Match": tile.headers["ETag"]}
    assert gateway.client.get(str(tile.url), headers=tag).status_code == 304
    assert gateway.client.get("/v1/fields/f/labels/6/1_0.png").status_code == 404


def put_labelled(
    store: DirectoryStore,
    cohort: str,
    classes: Classes,
    labels: np.ndarray,  # type: ignore[type-arg]
) -> None:
    """Put a cohort whose only slide is s, with a label map."""
    key = label_map_key("s", cohort)
    with store.writing(key) as path:
        write_label_map(path, iter([labels]), labels.shape[1], labels.shape[0], 0.5)
    record = CohortRecord(
        cohort=cohort,
        classes=classes,
        patches=PatchGrid(),
        splits={"s": "train"},
        sha256={"s": "0" * 64},
        labels={"s": sha256(store.get(key))},
    )
    store.put_json(cohort_key(cohort), record)


def test_a_field_is_made_of_the_label_map_that_its_cohort_has(gateway: Gateway) -> None:
    store, client = gateway.resources.root, gateway.client
    labels = np.tile(label_map(), (1, 2))
    put_labelled(store, "m", CLASSES, labels)
    key, record = label_map_key("s", "m"), store.get_json(cohort_key("m"))
    given = body(field="m", slide="s", cohort="m")
    made = store.get(key)
    with store.writing(key) as path:  # another ingest of the cohort has broken off after it
        write_label_map(path, iter([labels[::-1]]), 64, 32, 0.5)
    foreign = store.get(key)
    refused = client.post("/v1/fields", json=given)
    assert (refused.status_code, "not as it was made" in refused.json()["detail"]) == (422, True)
    store.put(key, made)
    for other, words in (
        ({"splits": {}, "sha256": {}}, "not one of its slides"),
        ({"labels": {}}, "slide 's' of cohort 'm' has no labels"),
    ):
        store.put_json(cohort_key("m"), record | other)
        refused = client.post("/v1/fields", json=given)
        assert (refused.status_code, words in refused.json()["detail"]) == (422, True), other
        assert 'data-cohort="m"' not in client.get("/fields/new").text
        with pytest.raises(InputError, match=words):
            put_mask(store, read_model(store, ModelRef("toy", "1")), key, None, {})
    store.put_json(cohort_key("m"), record)
    named = put_mask(store, read_model(store, ModelRef("toy", "1")), key, None, {})
    assert named == {"labels": key, "labels_sha256": sha256(made)}
    assert 'data-cohort="m"' in client.get("/fields/new").text
    job = client.post("/v1/fields", json=given).json()["job"]
    store.put(key, foreign)
    failed = gateway.work(job)
    assert (failed.state, "not as it was made" in str(failed.failed)) == ("failed", True)
    store.put(key, made)
    assert client.post("/v1/fields", json=given).json()["job"] == job
    assert gateway.work(job).state == "done"


def test_a_field_takes_the_label_map_of_a_slide_of_the_models_classes(gateway: Gateway) -> None:
    store = gateway.resources.root
    for cohort, classes in (("c", CLASSES), ("d", Classes.of("stroma", "bone"))):
        put_labelled(store, cohort, classes, np.tile(label_map(), (1, 2)))
    given = body(field="h")
    for source, words in (
        ({}, "one label map: labels, slide and cohort, or sampled"),
        (
            {"slide": "s", "cohort": "d"},
            "other classes ('background', 'stroma', 'bone') than toy/1",
        ),
        (
            {"slide": "s", "cohort": "e"},
            "'e' has no label map of slide 's': there is no such cohort",
        ),
        ({"slide": "t", "cohort": "c"}, "there is no slide 't'"),
    ):
        answer = gateway.client.post("/v1/fields", json=given | source)
        assert words in answer.json()["detail"], answer.text
    sent = gateway.client.post("/v1/fields", json=given | {"slide": "s", "cohort": "c"})
    request = gateway.resources.ledger("local").request(sent.json()["job"])
    key = "slides/s/labels/c.tif"
    assert (request["labels"], request["labels_sha256"]) == (key, sha256(store.get(key)))
    for key in list(store.list("models/toy/1/")):
        store.put(f"tenants/other/{key}", store.get(key))
    other = gateway.holding("generate", tenant="other")
    answer = other.post("/v1/fields", json=given | {"slide": "s", "cohort": "c"})
    assert "there is no slide 's'" in answer.json()["detail"]


def test_a_field_takes_a_map_that_its_job_samples(gateway: Gateway) -> None:
    store = gateway.resources.root
    size = {"width": 64, "height": 48}
    given = body(field="s", sampled=size)
    answer = gateway.client.post("/v1/fields", json=given)
    assert "toy/1 has no layout model" in answer.json()["detail"]
    record = read_model(store, ModelRef("toy", "1"))
    layouts = record.recipe.layouts.model_copy(update={"steps": 1})
    recipe = record.recipe.model_copy(update={"layouts": layouts})
    sampler = record.model_copy(update={"model": "sampler", "recipe": recipe})
    store.put_json(ModelRef("sampler", "1").key, sampler)
    given["model"] = "sampler"
    for sampled, words in (
        (size | {"height": 8}, "64×8 px: send at least 32×32 px"),
        (
            size | {"proportions": {"bone": 0.5}},
            "proportions name 'bone', which the model does not know",
        ),
        (size | {"proportions": {"tumor": 0.5, "stroma": 0.2}}, "leave 0.3 of the labelled"),
    ):
        answer = gateway.client.post("/v1/fields", json=given | {"sampled": sampled})
        assert answer.status_code == 422
        assert words in answer.json()["detail"]
        assert answer.json()["errors"][0]["pointer"] == "#/sampled"
    proportions = {"tumor": 0.25}
    sent = gateway.client.post(
        "/v1/fields", json=given | {"sampled": size | {"proportions": proportions}}
    )
    assert sent.status_code == 202, sent.text
    request = gateway.resources.ledger("local").request(sent.json()["job"])
    assert request["labels"] is None
    assert request["sampled"] == size | {"proportions": proportions}


def test_crops_that_do_not_fit_a_map_are_refused_before_a_job(gateway: Gateway) -> None:
    labels = text(encode_png(label_map()))
    one = body()["crops"][:1]

    def refused(**fields: Any) -> tuple[str, list[str]]:
        sent = gateway.client.post("/v1/fields", json=body(field="r", labels=labels) | fields)
        assert sent.status_code == 422, sent.text
        problem = sent.json()
        return problem["detail"], [error["pointer"] for error in problem.get("errors", [])]

    tumor, stroma = (dict(crop, at=[0.2, 0.5]) for crop in body()["crops"])
    elsewhere = dict(tumor, at=[0.9, 0.5])
    said, places = refused(crops=one)
    assert ("no crop is given of 'stroma'" in said, places) == (True, ["#/crops"])
    said, _ = refused(crops=[tumor, stroma, elsewhere])
    assert "no crop is given of 'stroma'" in said
    said, places = refused(crops=[], appearances=16)
    assert ("ask for at most" in said, places) == (True, ["#/appearances"])
    said, _ = refused(crops=[dict(tumor, at=[True, False]), stroma])
    assert "at" in said
    assert gateway.client.get("/v1/fields/r").status_code == 404
    assert "r" not in {item["field"] for item in gateway.client.get("/v1/fields").json()["items"]}
