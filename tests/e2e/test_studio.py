"""The studio in Chromium: what is painted is what the API gets, and what it makes is shown."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from heterotissue.stack.supervisor import Stack
from shared.contracts.models import ModelRecord, ModelRef
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.storage import open_store
from tests.atlases import make_atlas

SIZE = 32
SOON = 60_000  # milliseconds: the first image also loads the model

Labels = NDArray[np.uint8]


@pytest.fixture
def studio(page: Page) -> Page:
    """The page with an empty map, and its gallery filled."""
    page.goto("/studio")
    expect(page.locator("#gallery img").first).to_be_visible()
    return page


def spot(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where on the page a place of the map lies, in its pixels."""
    box = page.locator("#map").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"] / SIZE, box["y"] + y * box["height"] / SIZE


def stroke(page: Page, *places: tuple[float, float]) -> None:
    page.mouse.move(*spot(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*spot(page, *place), steps=4)
    page.mouse.up()


def painted(page: Page) -> Labels:
    """The map as the user would save it, uint8 (SIZE, SIZE)."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save map").click()
    with Image.open(download.value.path()) as picture:
        assert picture.mode == "P"
        return np.asarray(picture, np.uint8)


def ask(stack: Stack, **body: Any) -> bytes:
    headers = {"Authorization": f"Bearer {stack.token}", "Prefer": "wait=60"}
    answer = httpx2.post(f"{stack.url}/v1/images", json=body, headers=headers, timeout=90)
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


def saved_image(page: Page) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name="Save image").click()
    return Path(download.value.path()).read_bytes()


def test_what_is_painted_is_made(studio: Page, stack: Stack) -> None:
    """Two classes, a crop of each from the gallery; the bytes are those of the API."""
    studio.keyboard.press("1")
    studio.keyboard.press("f")
    stroke(studio, (5, 5))
    studio.keyboard.press("2")
    studio.keyboard.press("b")
    stroke(studio, (8.5, 16.5), (24.5, 16.5))
    crops = []
    for key, tissue in (("1", "stroma"), ("2", "tumor")):
        studio.keyboard.press(key)
        expect(studio.locator("#of")).to_have_text(tissue)
        tile = studio.locator("#gallery .tile").nth(int(key))
        tile.click()
        expect(tile).to_have_attribute("aria-pressed", "true")
        region = tile.get_attribute("data-region")
        crops.append({"tissue": tissue, "regions": "toy", "region": region})
    studio.get_by_label("Steps").fill("2")
    studio.get_by_label("Seed").fill("7")
    studio.get_by_label("Seed").blur()
    studio.keyboard.press("g")
    expect(studio.locator("#image")).to_be_visible(timeout=SOON)

    labels = painted(studio)
    y, x = np.mgrid[:SIZE, :SIZE]
    width = int(studio.get_by_label("Size").input_value())
    near = np.hypot(x - np.clip(x, 8, 24), y - 16) <= width / 2
    np.testing.assert_array_equal(labels, np.where(near, 2, 1))
    text = base64.b64encode(encode_png(labels)).decode()
    expected = ask(stack, model="toy", labels=text, crops=crops, steps=2, seed=7)
    assert saved_image(studio) == expected
    assert decode_png(expected).shape == (SIZE, SIZE, 3)


def test_strokes_are_undone_and_done_again(studio: Page) -> None:
    expect(studio.get_by_role("button", name="Undo")).to_be_disabled()
    studio.keyboard.press("p")
    for corner in ((4, 4), (28, 4), (28, 20), (4, 20)):
        stroke(studio, corner)
    studio.keyboard.press("Enter")
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[4:20, 4:28] = 1
    np.testing.assert_array_equal(painted(studio), square)
    studio.keyboard.press("e")
    for _ in range(9):
        studio.keyboard.press("[")
    stroke(studio, (10.5, 10.5))
    erased = square.copy()
    erased[10, 10] = 0
    np.testing.assert_array_equal(painted(studio), erased)
    studio.keyboard.press("z")
    np.testing.assert_array_equal(painted(studio), square)
    studio.keyboard.press("z")
    assert not painted(studio).any()
    studio.keyboard.press("Shift+Z")
    studio.keyboard.press("Control+Shift+Z")
    np.testing.assert_array_equal(painted(studio), erased)
    expect(studio.get_by_role("button", name="Redo")).to_be_disabled()


def test_touch_paints_and_does_not_scroll(studio: Page) -> None:
    session = studio.context.new_cdp_session(studio)
    for kind, place in (("Start", (16.5, 4.5)), ("Move", (16.5, 28.5)), ("End", None)):
        where = dict(zip("xy", spot(studio, *place), strict=True)) if place else None
        points = [where] if where else []
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    expect(studio.get_by_role("button", name="Undo")).to_be_enabled()
    assert painted(studio)[4:29, 16].all()
    assert studio.evaluate("scrollY") == 0


def test_the_map_of_a_region_is_taken_as_it_is(studio: Page, stack: Stack) -> None:
    region = studio.locator("#gallery .tile").first.get_attribute("data-region")
    studio.get_by_role("button", name=f"Take the map of region {region}").click()
    expect(studio.get_by_role("button", name="Undo")).to_be_enabled()
    store = open_store(config=stack.config)
    index = RegionIndex(store, load_region_set(store, "toy"), "train")
    whole = index[index.keys.index(str(region))].labels
    start = (len(whole) - SIZE) // 2
    middle = whole[start : start + SIZE, start : start + SIZE]
    np.testing.assert_array_equal(painted(studio), middle)
    studio.reload()  # a draft outlives the page
    np.testing.assert_array_equal(painted(studio), middle)


def test_variations_differ_by_their_seed(studio: Page) -> None:
    studio.locator("#gallery").get_by_text("Take map").first.click()
    studio.get_by_role("button", name="Pick for all classes").click()
    expect(studio.locator(".chosen:visible")).to_have_count(2)
    studio.get_by_label("Steps").fill("1")
    studio.get_by_label("Seed").fill("40")
    studio.get_by_label("Variations").select_option("4")
    studio.get_by_role("button", name="Generate").click()
    expect(studio.locator("#doing")).to_contain_text("Made in", timeout=SOON)
    expect(studio.locator("#results small")).to_have_text(["40", "41", "42", "43"])
    pictures = set()
    for tile in studio.locator("#results .tile").all():
        tile.click()
        pictures.add(saved_image(studio))
    assert len(pictures) == 4
    before = painted(studio)
    studio.get_by_role("button", name="Clear").click()
    with studio.expect_download() as download:
        studio.get_by_role("button", name="Save its map").click()
    assert download.value.suggested_filename == "toy-43.mask.png"
    with Image.open(download.value.path()) as its:
        np.testing.assert_array_equal(np.asarray(its), before)
    studio.get_by_label("Map over it").fill("0.5")
    expect(studio.locator("#over")).to_have_css("opacity", "0.5")


def test_a_crop_is_cut_from_a_picture_of_the_users(studio: Page, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
    (tmp_path / "mine.png").write_bytes(encode_png(picture))
    studio.keyboard.press("f")
    stroke(studio, (5, 5))
    studio.get_by_role("button", name="From a picture of yours").click()
    studio.get_by_label("Picture", exact=True).set_input_files(tmp_path / "mine.png")
    expect(studio.locator("#cut")).to_be_visible()
    box = studio.locator("#cut").bounding_box()
    assert box is not None
    zoom = box["width"] / 80
    studio.mouse.move(box["x"] + 20 * zoom, box["y"] + 10 * zoom)
    studio.mouse.down()
    studio.mouse.move(box["x"] + 30 * zoom, box["y"] + 20 * zoom)
    studio.mouse.up()
    expect(studio.locator("#cut-note")).to_contain_text("10 × 10 px")
    studio.get_by_role("button", name="Use it").click()
    expect(studio.locator(".chosen:visible")).to_have_count(1)
    with studio.expect_request("**/v1/images") as sent:
        studio.keyboard.press("g")
    (crop,) = sent.value.post_data_json["crops"]
    assert crop["tissue"] == "stroma"
    with Image.open(io.BytesIO(base64.b64decode(crop["png"]))) as cut:
        np.testing.assert_array_equal(np.asarray(cut.convert("RGB")), picture[10:20, 20:30])
    expect(studio.locator("#image")).to_be_visible(timeout=SOON)


@pytest.fixture(scope="module")
def atlas(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clustering of four slides of 1 µm per pixel, and the toy model again, of 2 µm per pixel."""
    store = open_store(config=stack.config)
    make_atlas(store, tmp_path_factory.mktemp("slides"), "bands")
    toy, wide = ModelRef("toy", "1").prefix, ModelRef("wide", "1").prefix
    for key in list(store.list(toy)):
        store.put(wide + key.removeprefix(toy), store.get(key))
    record = store.get_model(ModelRef("toy", "1").key, ModelRecord)
    store.put_json(
        ModelRef("wide", "1").key, record.model_copy(update={"model": "wide", "mpp": 2.0})
    )
    return "bands"


def crop_of_slide(stack: Stack, slide: str, x: int, y: int, side: int) -> bytes:
    answer = httpx2.get(
        f"{stack.url}/v1/slides/{slide}/crop.png",
        params={"x": x, "y": y, "side": side, "mpp": 2.0},
        headers={"Authorization": f"Bearer {stack.token}"},
    )
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


def test_crops_are_cut_from_a_slide_and_from_the_atlas(
    studio: Page, stack: Stack, atlas: str
) -> None:
    """Each class has the pixels of the place that was clicked, at the model's scale."""
    studio.goto("/studio?model=wide/1")
    expect(studio.locator("#gallery img").first).to_be_visible()
    studio.keyboard.press("f")
    stroke(studio, (5, 5))
    studio.keyboard.press("2")
    studio.keyboard.press("b")
    stroke(studio, (8.5, 16.5), (24.5, 16.5))

    studio.keyboard.press("1")
    studio.get_by_role("button", name="Slide", exact=True).click()
    studio.get_by_role("combobox", name="Slide", exact=True).select_option("s1")
    expect(studio.locator("#view[data-open]")).to_be_attached()
    studio.locator("#view .openseadragon-canvas").first.focus()
    studio.keyboard.press("Enter")
    chosen = studio.locator(".chosen:visible")
    expect(chosen).to_have_attribute("title", "Cut from slide s1 at 244, 244; click to drop it")
    box = studio.locator("#view").bounding_box()
    assert box is not None
    across = box["height"] / 512  # the whole slide is in view, which is wider than high
    studio.mouse.click(box["x"] + box["width"] / 2 + 100 * across, box["y"] + 156 * across)
    expect(chosen).to_have_attribute("title", re.compile("at 3"))
    expect(studio.locator("#view .taken")).to_be_visible()
    found = re.search(r"at (\d+), (\d+)", str(chosen.get_attribute("title")))
    assert found is not None
    x, y = int(found[1]), int(found[2])
    assert abs(x - 344) <= 1, x  # the square of 24 µm has its middle where the click was
    assert abs(y - 144) <= 1, y
    clicked = crop_of_slide(stack, "s1", x, y, 12)

    studio.keyboard.press("2")
    studio.get_by_role("button", name="Atlas", exact=True).click()
    studio.get_by_label("Clustering").select_option(atlas)
    studio.get_by_label("Tissue type").select_option("type 3")
    # The middle of the patch of 64 µm at 352, 0, which is more than a crop may be.
    patch = studio.get_by_role("button", name="Patch of s2 at 372, 20", exact=True)
    patch.focus()
    studio.keyboard.press("Enter")
    expect(patch).to_have_attribute("aria-pressed", "true")
    expect(chosen).to_have_count(2)
    middle = crop_of_slide(stack, "s2", 372, 20, 12)

    with studio.expect_request("**/v1/images") as sent:
        studio.keyboard.press("g")
    expect(studio.locator("#picking-note")).to_contain_text("12 × 12 px at the model’s 2 µm")
    crops = {crop["tissue"]: crop["png"] for crop in sent.value.post_data_json["crops"]}
    assert base64.b64decode(crops["stroma"]) == clicked
    assert base64.b64decode(crops["tumor"]) == middle
    expect(studio.locator("#image")).to_be_visible(timeout=SOON)


def test_a_slide_that_is_too_coarse_for_the_model_says_so(studio: Page, atlas: str) -> None:
    """The model has 0.5 µm per pixel, the slide 1 µm."""
    studio.get_by_role("button", name="Slide", exact=True).click()
    studio.get_by_role("combobox", name="Slide", exact=True).select_option("s0")
    expect(studio.locator("#view[data-open]")).to_be_attached()
    studio.locator("#view").click()
    expect(studio.locator("#picking-note")).to_contain_text("too coarse for the 0.5 µm/px")
    expect(studio.locator(".chosen:visible")).to_have_count(0)
    studio.keyboard.press("0")  # of the studio's keys, which the viewer leaves alone
    expect(studio.locator("#picking-note")).to_contain_text("background is no tissue")
    expect(studio.locator("#view")).to_be_hidden()
    studio.keyboard.press("1")
    expect(studio.locator("#view")).to_be_visible()


def test_a_draft_becomes_a_dataset(studio: Page) -> None:
    studio.keyboard.press("f")
    stroke(studio, (5, 5))
    studio.keyboard.press("2")
    studio.keyboard.press("p")
    for corner in ((0, 0), (32, 0), (32, 8), (0, 8)):
        studio.mouse.click(*spot(studio, *(min(31.99, part) for part in corner)))
    studio.keyboard.press("Enter")
    expect(studio.locator("#classes output")).to_have_text(["0 %", "75 %", "25 %"])
    studio.get_by_label("Steps").fill("3")
    studio.get_by_label("Crop guidance").fill("2.5")
    studio.get_by_label("Crop staining").fill("0.75")
    studio.get_by_label("Seed").fill("9")
    studio.get_by_role("link", name="Make a dataset like this").click()
    studio.wait_for_url(re.compile(r"/datasets/new\?"))
    form = {
        "model": "toy/1",
        "steps": "3",
        "guidance_map": "",
        "guidance_crops": "2.5",
        "staining": "0.75",
        "seed": "9",
    }
    for name, value in form.items():
        expect(studio.locator(f"#dataset [name={name}]")).to_have_value(value)
    expect(studio.get_by_label("as I say")).to_be_checked()
    stroma, tumor = studio.locator("#shares input").all()
    expect(stroma).to_have_value("0.75")
    expect(tumor).to_have_value("0.25")


def test_what_the_server_refuses_is_said(studio: Page, stack: Stack) -> None:
    """A region that is no longer there, of a draft that was kept."""
    studio.keyboard.press("f")
    stroke(studio, (5, 5))
    studio.locator("#gallery .tile").first.click()
    studio.evaluate(
        """for (const key of Object.keys(sessionStorage)) {
            const draft = JSON.parse(sessionStorage[key]);
            draft.crops[0][1].source.region = "slide-a_gone";
            sessionStorage[key] = JSON.stringify(draft);
        }"""
    )
    studio.reload()
    expect(studio.locator(".chosen:visible")).to_have_count(1)
    studio.keyboard.press("g")
    expect(studio.locator("#problem")).to_contain_text("no region 'slide-a_gone'", timeout=SOON)
    expect(studio.get_by_role("button", name="Generate")).to_be_enabled()


def test_keys_are_explained(studio: Page) -> None:
    studio.keyboard.press("?")
    expect(studio.get_by_role("dialog", name="Keys")).to_be_visible()
    studio.keyboard.press("Escape")
    expect(studio.get_by_role("dialog", name="Keys")).to_be_hidden()
