"""What the gateway shows of a slide is of the files that were ingested, and of the cohort named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.gateway.api import zoom
from shared.imaging.label_map import write_label_map
from shared.phantom import write_phantom
from shared.storage import sha256
from tests.gateway import Gateway
from tests.phantoms import PHANTOM_SEED
from tests.unit.test_gateway_slides import ingest


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def test_a_label_map_of_others_is_not_downloaded(gateway: Gateway, phantom: Path) -> None:
    ingest(gateway, phantom)
    root, key = gateway.resources.root, "slides/p/labels/c.tif"
    assert gateway.client.get("/v1/slides/p/labels.tif").content == root.get(key)
    root.put(key, root.get(key) + b"?")
    refused = gateway.client.get("/v1/slides/p/labels.tif")
    assert (refused.status_code, key in refused.json()["detail"]) == (409, True)
    assert "'htd ingest' of its cohort" in refused.json()["remedy"]
    tile = gateway.client.get("/v1/slides/p/labels/0/0_0.png")
    assert (tile.status_code, key in tile.json()["detail"]) == (409, True)
    record = root.get_json("cohorts/c.json")
    places = ("labels.tif", "labels.tif?cohort=c", "labels/0/0_0.png", "labels/0/0_0.png?cohort=c")
    root.put_json("cohorts/c.json", record | {"splits": {}})  # it was made again, without the slide
    for place in places:
        assert gateway.client.get(f"/v1/slides/p/{place}").status_code == 404, place
    assert gateway.client.get("/slides/p").status_code == 200
    root.delete("cohorts/c.json")
    for place in places:
        assert gateway.client.get(f"/v1/slides/p/{place}").status_code == 404, place


def test_an_overlay_is_the_label_map_of_the_cohort_that_is_named(
    gateway: Gateway, phantom: Path
) -> None:
    ingest(gateway, phantom)
    root = gateway.resources.root
    with root.writing("slides/p/labels/b.tif") as path:
        write_label_map(path, iter([np.full((100, 100), 2, np.uint8)]), 100, 100, 7.5)
    labels = {"p": sha256(root.get("slides/p/labels/b.tif"))}
    record = root.get_json("cohorts/c.json") | {"cohort": "b", "labels": labels}
    root.put_json("cohorts/b.json", record)
    shown = {}
    for cohort in ("b", "c", None):
        params = {"cohort": cohort} if cohort else {}
        tile = gateway.client.get("/v1/slides/p/labels/8/0_0.png", params=params)
        with Image.open(io.BytesIO(tile.content)) as picture:
            shown[cohort] = np.asarray(picture)
    assert (shown["b"] == 2).all()
    assert not (shown["c"] == 2).all()
    np.testing.assert_array_equal(shown[None], shown["b"])


def test_a_replaced_slide_has_no_crops_and_overlays(
    gateway: Gateway, phantom: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their scale, tissue and labels are those of the slide that was ingested."""
    ingest(gateway, phantom)
    monkeypatch.setattr(zoom, "FRESH_SECONDS", -1.0)
    client, root, key = gateway.client, gateway.resources.root, "slides/p/source/p.tiff"
    places = (
        "crop.png?x=0&y=0&side=64&mpp=1.0", "labels/8/0_0.png", "tissue/8/0_0.png",
    )  # fmt: skip
    tags = {}
    for place in places:
        answer = client.get(f"/v1/slides/p/{place}")
        assert answer.status_code == 200, place
        tags[place] = {"If-None-Match": answer.headers["ETag"]}
    whole = root.get(key)
    other = write_phantom(tmp_path / "other", "p", 3000, 2400, PHANTOM_SEED).slide
    client.put("/v1/slides/p/source/p.tiff", content=other.read_bytes())
    for place in places:
        refused = client.get(f"/v1/slides/p/{place}", headers=tags[place])
        assert refused.status_code == 409, place
        assert "'p' was replaced since it was ingested" in refused.json()["detail"]
    assert 'Width="3000"' in client.get("/v1/slides/p/deepzoom.dzi").text
    root.put(key, whole)
    for place in places:
        assert client.get(f"/v1/slides/p/{place}").status_code == 200, place
