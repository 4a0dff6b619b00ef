"""Pages of slides and of the atlas, and the tiles that they lay over slides; no browser."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from services.gateway.web.pages import FOLDER
from shared.contracts.base import class_color
from shared.imaging.label_map import LabelMap
from shared.storage import DirectoryStore
from tests.atlases import STEP, make_atlas
from tests.gateway import Gateway

PAGES = ("/slides", "/slides/s0", "/slides/bare", "/atlas", "/atlas/types")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("pages")
    make_atlas(DirectoryStore(folder), tmp_path_factory.mktemp("slides"))
    gateway = Gateway(folder)
    gateway.client.put("/v1/slides/bare/source/bare.svs", content=b"no slide")
    return gateway


@pytest.fixture
def types(gateway: Gateway) -> dict[str, dict[str, object]]:
    """The types as a request names them; reset before each test."""
    return {
        str(label): {"name": f"type {label}", "color": list(class_color(label)), "merge": None}
        for label in (1, 2, 3)
    }


def tile(gateway: Gateway, place: str) -> NDArray[np.uint8]:
    """Get a tile as uint8 RGBA."""
    answer = gateway.client.get(place)
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("place", PAGES)
def test_pages_run_only_our_own_scripts(gateway: Gateway, place: str) -> None:
    page = gateway.client.get(place)
    assert page.status_code == 200, page.text
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, attributes in re.findall(r"<(script|link|img)\b([^>]*)>", page.text):
        addresses = re.findall(r'(?:src|href)="([^"]*)"', attributes)
        assert addresses, tag
        assert all(address.startswith("/") and address[1] != "/" for address in addresses)
        for address in addresses:
            assert gateway.client.get(address).status_code == 200, address
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)


def test_who_is_not_logged_in_is_asked_to(gateway: Gateway) -> None:
    visitor = TestClient(gateway.app, follow_redirects=False)
    for place in PAGES:
        answer = visitor.get(place)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/login?next={place}")


def test_what_is_not_there_is_said_on_a_page(gateway: Gateway) -> None:
    for place, words in (
        ("/slides/none", "slide &#39;none&#39;"),
        ("/atlas/none", "&#39;none&#39;"),
    ):
        page = gateway.client.get(place)
        assert page.status_code == 404
        assert page.headers["Content-Type"].startswith("text/html")
        assert words in page.text


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    client = Gateway(tmp_path).client
    assert "No slide yet" in client.get("/slides").text
    assert "No tissue types yet" in client.get("/atlas").text


def test_scopes_decide_what_is_offered(gateway: Gateway) -> None:
    reader = gateway.holding("read")
    assert 'id="bring"' in gateway.client.get("/slides").text
    assert 'id="bring"' not in reader.get("/slides").text
    assert 'id="save"' in gateway.client.get("/atlas/types").text
    assert 'id="save"' not in reader.get("/atlas/types").text
    assert reader.get("/slides/s0").status_code == 200


def test_names_of_types_are_escaped(gateway: Gateway, types: dict[str, dict[str, object]]) -> None:
    types["1"]["name"] = '"><script>alert(1)</script>'
    assert gateway.client.put("/v1/clusters/types/types", json=types).status_code == 200
    for place in ("/atlas/types", "/slides/s0?run=types"):
        page = gateway.client.get(place).text
        assert "&lt;script&gt;alert(1)" in page
        assert "<script>alert" not in page


def test_a_slides_page_says_what_is_known_of_it(gateway: Gateway) -> None:
    page = gateway.client.get("/slides/s0").text
    assert "512 × 512 px" in page
    assert "0.51 × 0.51 mm" in page
    assert "textures (train)" in page
    assert 'href="/v1/slides/s0/labels.tif?cohort=textures"' in page
    assert gateway.client.get("/v1/clusters/types/labels/s0.tif").content[:2] in (b"II", b"MM")
    assert "has not been ingested" in gateway.client.get("/slides/bare").text
    thumbnail = gateway.client.get("/v1/slides/s0/thumbnail.png")
    assert thumbnail.content.startswith(b"\x89PNG")
    assert gateway.client.get("/v1/slides/bare/thumbnail.png").status_code == 404


def test_tissue_tiles_lie_over_the_slide(gateway: Gateway) -> None:
    """The slide is tissue within a margin of 32 px of glass; level 8 of its tiles is half of it."""
    shown = tile(gateway, "/v1/slides/s0/tissue/8/0_0.png")[..., 3] > 0
    assert shown.shape == (255, 255)
    assert not shown[:8].any()
    assert not shown[:, :8].any()
    assert shown[24:232, 24:232].mean() > 0.95
    assert gateway.client.get("/v1/slides/s0/tissue/8/9_9.png").status_code == 404
    assert gateway.client.get("/v1/slides/bare/tissue/8/0_0.png").status_code == 404


def test_tiles_of_types_are_the_clusterings_map(
    gateway: Gateway, types: dict[str, dict[str, object]]
) -> None:
    gateway.client.put("/v1/clusters/types/types", json=types)
    colors = np.asarray([class_color(label) for label in range(4)])
    with LabelMap(gateway.resources.root.local("clusters/types/labels/s0.tif")) as opened:
        labels = opened.whole().repeat(STEP, 0).repeat(STEP, 1)
    for level, shrink in ((9, 1), (8, 2)):
        shown = tile(gateway, f"/v1/slides/s0/clusters/types/{level}/1_1.png")
        start = 253 * shrink
        centres = np.clip(start + (np.arange(len(shown)) * shrink + shrink // 2), 0, 511)
        assert (shown[..., :3] == colors[labels[np.ix_(centres, centres)]]).all()
    alone = tile(gateway, "/v1/slides/s0/clusters/types/8/0_0.png?type=2")
    assert ((alone[..., 3] > 0) == (labels[1::2, 1::2][:255, :255] == 2)).all()


def test_tiles_of_types_follow_what_people_say(
    gateway: Gateway, types: dict[str, dict[str, object]]
) -> None:
    place = "/v1/slides/s0/clusters/types/8/0_0.png"
    gateway.client.put("/v1/clusters/types/types", json=types)
    first = gateway.client.get(place)
    tag = {"If-None-Match": first.headers["ETag"]}
    assert gateway.client.get(place, headers=tag).status_code == 304
    types["2"]["merge"], types["1"]["color"] = 1, [1, 2, 3]
    gateway.client.put("/v1/clusters/types/types", json=types)
    again = gateway.client.get(place, headers=tag)
    assert (again.status_code, again.headers["Cache-Control"]) == (200, "private, no-cache")
    shown = tile(gateway, place)
    assert (shown[10, [10, 120], :3] == [1, 2, 3]).all()
    assert gateway.client.get(place.replace("/types/", "/none/")).status_code == 404


def test_where_a_type_lies(gateway: Gateway) -> None:
    place = "/v1/clusters/types/types/3/slides"
    found = gateway.client.get(place, params={"limit": 3}).json()
    assert [item["slide"] for item in found["items"]] == ["s0", "s1", "s2"]
    nearest = [[x, y] for y in (0, 32) for x in range(352, 512, 32)]
    first = {"slide": "s0", "patches": 80, "x": 352, "y": 0, "nearest": nearest}
    assert found["items"][0] == first
    rest = gateway.client.get(place, params={"cursor": found["next"]}).json()
    assert [item["slide"] for item in rest["items"]] == ["s3"]
    assert gateway.client.get(place.replace("/3/", "/9/")).json()["items"] == []
    assert gateway.client.get(place.replace("clusters/types", "clusters/none")).status_code == 404


def test_openseadragon_is_shipped_with_its_licence() -> None:
    vendor = FOLDER / "static" / "vendor"
    assert "openseadragon 5.0.1" in (vendor / "openseadragon.min.js").read_text()[:100]
    assert "CodePlex" in (vendor / "openseadragon.LICENSE.txt").read_text()
