"""Tissue is painted into a window of a slide, and into a picture of the user's."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from heterotissue.stack.supervisor import Stack
from services.ingest.stage import IngestStage
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.models import ModelRecord, ModelRef
from shared.imaging.codec import decode_png, encode_png
from shared.jobs import Ledger, run_job
from shared.storage import open_store
from tests.e2e.test_studio import SIZE, SOON, saved_image, stroke
from tests.texture_slides import texture_slide


@pytest.fixture(scope="module")
def model(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy model at 2 µm per pixel, and a slide of 1 µm per pixel."""
    store, source = open_store(config=stack.config), tmp_path_factory.mktemp("slides") / "e0.tiff"
    tifffile.imwrite(source, texture_slide(256, 0)[0], tile=(256, 256), photometric="rgb")
    request = IngestRequest(
        cohort="edited", slides=(SlideSource(slide="e0", source=str(source), mpp=1.0),),
        patches=PatchGrid(size=64, mpp=1.0, stride=64),
    )  # fmt: skip
    ledger = Ledger(store)
    assert run_job(ledger, IngestStage(), ledger.submit(request)).state == "done"
    toy, own = ModelRef("toy", "1"), ModelRef("window", "1")
    for key in list(store.list(toy.prefix)):
        store.put(own.prefix + key.removeprefix(toy.prefix), store.get(key))
    record = store.get_model(toy.key, ModelRecord)
    store.put_json(own.key, record.model_copy(update={"model": "window", "mpp": 2.0}))
    return str(own)


def sent_pixels(text: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture)


def test_tissue_is_painted_into_a_slides_window_and_a_picture(
    page: Page, model: str, tmp_path: Path
) -> None:
    page.goto("/studio")
    page.get_by_role("link", name="Edit a picture").click()
    page.get_by_label("Model").select_option(model)
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_disabled()
    page.get_by_role("button", name="From a slide").click()
    page.locator("#window-slides").select_option("e0")
    expect(page.locator("#window-view[data-open]")).to_be_attached()
    page.locator("#window-view .openseadragon-canvas").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#original")).to_be_visible()
    page.get_by_role("radio", name="tumor").check()
    stroke(page, (10.5, 10.5))
    page.locator("#gallery .tile").first.click()
    page.get_by_label("Border, px").fill("2")
    page.get_by_label("Steps").fill("1")
    with page.expect_request("**/v1/edits") as asked:
        page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.locator("#image")).to_be_visible(timeout=SOON)
    body = asked.value.post_data_json
    image, labels, area = (sent_pixels(body[name]) for name in ("image", "labels", "area"))
    y, x = np.mgrid[:SIZE, :SIZE]
    near = np.hypot(x - 10, y - 10)
    radius = int(page.get_by_label("Size").input_value()) / 2
    np.testing.assert_array_equal(area, near <= radius)
    np.testing.assert_array_equal(labels, np.where(near <= radius, 2, 1))
    assert [crop["tissue"] for crop in body["crops"]] == ["tumor"]  # stroma's is of the picture
    result, far = decode_png(saved_image(page)), near > radius + 3
    np.testing.assert_array_equal(result[far], image[far])
    assert (result[area > 0] != image[area > 0]).mean() > 0.9

    mine = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    (tmp_path / "mine.png").write_bytes(encode_png(mine))
    page.get_by_role("button", name="From a picture", exact=True).click()
    page.get_by_label("Picture", exact=True).set_input_files(tmp_path / "mine.png")
    page.locator("#cut").click()
    page.get_by_role("button", name="Use it").click()
    page.get_by_label("Action").select_option("vary")
    with page.expect_request("**/v1/edits") as asked:
        page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.locator("#image")).to_be_visible(timeout=SOON)
    body = asked.value.post_data_json
    np.testing.assert_array_equal(sent_pixels(body["image"])[..., :3], mine)
    assert "area" not in body
    assert "border" not in body
    page.get_by_label("Action").select_option("paint")  # what the server refuses is said
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.locator("#problem")).to_contain_text("the area is empty")
