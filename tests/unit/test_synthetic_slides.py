"""Slides and tiles that say that they are synthetic are recorded so, and leave with their mark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import tifffile
from PIL import Image

from shared.contracts.base import Classes
from shared.contracts.ingest import CohortRecord, SlideRecord, cohort_key, slide_key
from shared.contracts.regions import RegionSet, region_set_key
from shared.imaging.marks import UNNAMED, Mark, mark_png, mark_xmp, parse_mark
from shared.imaging.pyramid import Deflate, write_pyramid
from shared.imaging.redaction import apply, redactions
from shared.phantom import PHANTOM_CLASSES, write_phantom
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.phantoms import PHANTOM_SEED
from tests.unit.test_ingest_tiles import CLASSES, ingest_tiles, write_tiles

MARK = Mark("toy/1", "f")

SAID = "1 of 1 slides state that they are synthetic, whole or in part (p): "


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic slide, as `htd ingest` copies it, with its annotation beside it."""
    phantom = write_phantom(tmp_path_factory.mktemp("slides"), "p", 700, 600, PHANTOM_SEED).slide
    pixels, codec = tifffile.imread(phantom), Deflate()
    write_pyramid(phantom, codec.tiles(pixels), pixels.shape, 0.5, codec, mark_xmp(MARK))
    apply(phantom, redactions(phantom))
    return phantom


def mark_in(picture: bytes) -> Mark | None:
    xmp = Image.open(io.BytesIO(picture)).info.get("xmp")
    return parse_mark(xmp) if xmp else None


def ingest(gateway: Gateway, slide: Path) -> dict[str, Any]:
    client = gateway.client
    info = client.put("/v1/slides/p/source/p.tiff", content=slide.read_bytes()).json()
    annotation = slide.with_suffix(".geojson").read_bytes()
    client.put("/v1/slides/p/annotation/p.geojson", content=annotation)
    body = {
        "cohort": "c",
        "slides": [
            {"slide": "p", "source": info["source"], "labels": "slides/p/annotation/p.geojson"}
        ],
        "classes": PHANTOM_CLASSES.model_dump(mode="json"),
        "patches": {"size": 64, "mpp": 1.0, "stride": 64},
        "regions": {"size": 64, "mpp": 1.0},
    }
    answer = client.post("/v1/ingest", json=body)
    status = gateway.work(answer.json()["job"])
    assert status.state == "done", status.failed
    return dict(status.result or {})


def test_a_synthetic_slide_stays_one(slide: Path, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    ingest(gateway, slide)
    store = gateway.resources.root
    assert store.get_model(slide_key("p"), SlideRecord).synthetic
    cohort = store.get_model(cohort_key("c"), CohortRecord)
    regions = store.get_model(region_set_key("c"), RegionSet)
    assert cohort.cautions == regions.cautions
    assert cohort.cautions[-1].startswith(SAID)
    assert [part.synthetic for part in regions.slides] == [True]
    client = gateway.client
    for place in (
        "slides/p/thumbnail.png",
        "slides/p/deepzoom_files/8/0_0.jpeg",
        "slides/p/labels/8/0_0.png",
        "slides/p/crop.png?x=0&y=0&side=32&mpp=0.5",
    ):
        answer = client.get(f"/v1/{place}")
        assert (answer.status_code, mark_in(answer.content)) == (200, MARK), place
    key = client.get("/v1/regions/c/p").json()["items"][0]["key"]
    for show in ("image", "labels", "colors"):
        region = client.get(f"/v1/regions/c/p/{key}.png", params={"show": show})
        assert mark_in(region.content) == UNNAMED


def test_real_slides_have_no_mark(slide: Path, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    phantom = write_phantom(tmp_path, "p", 700, 600, PHANTOM_SEED).slide
    ingest(gateway, phantom)
    store = gateway.resources.root
    assert not store.get_model(slide_key("p"), SlideRecord).synthetic
    assert not any("synthetic" in said for said in load(store, "c").cautions)
    tile = gateway.client.get("/v1/slides/p/deepzoom_files/8/0_0.jpeg")
    thumbnail = gateway.client.get("/v1/slides/p/thumbnail.png")
    assert (mark_in(tile.content), mark_in(thumbnail.content)) == (None, None)


def load(store: DirectoryStore, name: str) -> RegionSet:
    return store.get_model(region_set_key(name), RegionSet)


def test_synthetic_tiles_are_a_caution(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles")
    path = tmp_path / "tiles" / "train" / "tumor" / "p2-1.png"
    path.write_bytes(mark_png(path.read_bytes(), MARK))
    store = DirectoryStore(tmp_path / "store")
    classes = Classes.of(*CLASSES.names[1:], exhaustive=True)
    assert ingest_tiles(store, tmp_path / "tiles", classes).state == "done"
    record = load(store, "t")
    assert {part.slide: part.synthetic for part in record.slides} == {
        "1": False, "2": True, "3": False,
    }  # fmt: skip
    assert any("1 of 3 slides state that they are synthetic" in said for said in record.cautions)
