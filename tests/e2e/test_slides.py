"""A slide is uploaded, ingested and looked at with its maps; tissue types are named and merged."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from playwright.sync_api import Page, expect

from heterotissue.stack.supervisor import Stack
from shared.contracts.cluster import ClusterRecord, TissueType
from shared.storage import open_store
from shared.tissue_types import read_types
from tests.atlases import make_atlas
from tests.texture_slides import texture_slide


@pytest.fixture(scope="module")
def atlas(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clustering of four slides."""
    make_atlas(open_store(config=stack.config), tmp_path_factory.mktemp("slides"), "types", 1024)
    return "types"


def open_slide(page: Page, place: str) -> None:
    """Go to a slide, and wait until it is open."""
    page.goto(place)
    expect(page.locator("#viewer[data-open]")).to_be_attached()


def expect_tiles(page: Page, part: str) -> None:
    """Wait until a tile has come whose address has such a part."""
    page.wait_for_function(
        """(part) => performance.getEntriesByType("resource").some(
            (item) => item.name.includes(part) && item.responseStatus === 200)""",
        arg=part,
    )


def colors(page: Page) -> set[tuple[int, int, int]]:
    """Return what is drawn where the slide is."""
    with Image.open(io.BytesIO(page.locator(".view").screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
    return {(int(r), int(g), int(b)) for r, g, b in pixels.reshape(-1, 3)}


def ingest(page: Page, slide: str, cohort: str, mpp: str = "", classes: str = "") -> None:
    page.get_by_label(f"Ingest {slide}").check()
    page.get_by_label("Cohort").fill(cohort)
    page.get_by_label("Classes").fill(classes)
    page.get_by_label("µm per pixel").fill(mpp)
    page.get_by_role("button", name="Ingest").click()
    row = page.get_by_role("row", name=slide)
    expect(row).to_contain_text("ingested", timeout=60_000)


def test_a_slide_is_uploaded_with_its_annotation_ingested_and_seen(
    page: Page, tmp_path: Path
) -> None:
    image, labels = texture_slide(1024, 7)
    slide, mask = tmp_path / "new.tiff", tmp_path / "new_mask.tiff"
    tifffile.imwrite(
        slide, image, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    tifffile.imwrite(mask, labels)
    page.goto("/slides")
    page.get_by_role("button", name="Upload slides").click()
    page.get_by_label("Files").set_input_files([slide, mask])
    expect(page.locator("#sending")).to_contain_text("new_mask.tiff → new")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("row", name="new")).to_contain_text("annotated", timeout=30_000)
    ingest(page, "new", "fresh", classes="dots, fibres, blobs")

    open_slide(page, "/slides/new")
    expect(page.locator("#scale")).to_contain_text("µm")
    page.get_by_label("Tissue mask", exact=True).check()
    for part in ("/deepzoom_files/", "/labels/", "/tissue/"):
        expect_tiles(page, part)
    expect(page.get_by_label("Classes of the label map")).to_contain_text("fibres")
    with page.expect_download() as download:
        page.get_by_role("link", name="Label map (TIFF)").click()
    assert (tifffile.imread(download.value.path()) > 0).mean() > 0.8


def test_a_file_that_is_no_slide_is_named_with_the_reason(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    page.goto("/slides")
    page.get_by_role("button", name="Upload slides").click()
    page.get_by_label("Files").set_input_files(tmp_path / "broken.svs")
    page.get_by_role("button", name="Upload", exact=True).click()
    row = page.get_by_role("row", name="broken")
    expect(row).to_contain_text("uploaded", timeout=30_000)
    page.get_by_label("Ingest broken").check()
    page.get_by_label("Cohort").fill("never")
    page.get_by_role("button", name="Ingest").click()
    expect(page.locator("#problem")).to_contain_text("broken", timeout=60_000)
    page.goto("/slides/broken")
    expect(page.locator("#problem")).to_contain_text("cannot be opened")


def test_overlays_are_drawn_faded_and_hidden(page: Page, atlas: str) -> None:
    open_slide(page, f"/slides/s0?run={atlas}")
    third = tuple(int(part) for part in str(
        page.locator("#types [data-color]").first.get_attribute("data-color")
    ).split(","))  # fmt: skip
    opacity = page.get_by_label("Opacity of tissue types")
    opacity.fill("1")
    page.wait_for_function("document.querySelectorAll('#viewer canvas').length > 0")
    expect_color(page, third, True)
    page.get_by_label("Tissue types", exact=True).uncheck()
    expect_color(page, third, False)
    page.locator("#types button").nth(1).click()  # alone, and on again
    expect(page.locator("#types button").nth(1)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Tissue types", exact=True)).to_be_checked()
    expect_color(page, third, False)
    page.locator("#types button").nth(1).click()
    expect_color(page, third, True)


def expect_color(page: Page, color: tuple[int, ...], there: bool) -> None:
    """Wait until a colour is, or is not, drawn in the view; its tiles come when they do."""
    for _ in range(100):
        if (color in colors(page)) == there:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{color} is {'not ' if there else ''}drawn")


def test_the_viewer_is_moved_by_keys_and_buttons(page: Page, atlas: str) -> None:
    open_slide(page, "/slides/s0")
    before = page.locator("#scale").get_attribute("aria-label")
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
    expect(page.locator("#scale")).not_to_have_attribute("aria-label", str(before))
    page.get_by_role("button", name="Whole slide").click()
    expect(page.locator("#scale")).to_have_attribute("aria-label", str(before))
    page.locator(".openseadragon-canvas").first.focus()
    for _ in range(6):
        page.keyboard.press("+")
    expect(page.locator("#scale")).not_to_have_attribute("aria-label", str(before))


def test_types_are_named_merged_and_found_on_a_slide(page: Page, stack: Stack, atlas: str) -> None:
    store = open_store(config=stack.config)
    page.goto("/atlas")
    page.get_by_role("link", name=atlas).click()
    save = page.get_by_role("button", name="Save")
    expect(save).to_be_disabled()
    page.get_by_label("Name of type 1").fill("stroma")
    page.get_by_label("Colour of type 1").fill("#102030")
    page.get_by_label("Tick type 1").check()
    page.get_by_label("Tick type 3").check()
    page.get_by_role("button", name="Merge ticked").click()
    expect(page.locator("[data-label='3'] .merged")).to_have_text("merged into 1, stroma")
    save.click()
    expect(page.locator("#status")).to_contain_text("Saved")
    record = store.get_model(f"clusters/{atlas}/run.json", ClusterRecord)
    types = read_types(store, atlas, record.k)
    assert types[1] == TissueType(name="stroma", color=(16, 32, 48))
    assert types[3].merge == 1

    page.get_by_role("button", name="Separate").click()
    page.get_by_label("Name of type 2").press("Enter")
    expect(page.locator("#status")).to_contain_text("Saved")
    assert read_types(store, atlas, record.k)[3].merge is None

    page.get_by_label("Find types by name").fill("stro")
    expect(page.locator(".type:visible")).to_have_count(1)
    page.locator("[data-label='1']").get_by_text("Where it lies").click()
    page.get_by_role("link", name="s1").click()
    expect(page.locator("#viewer[data-open]")).to_be_attached()
    pressed = page.locator("#types [aria-pressed=true]")
    expect(pressed).to_contain_text("stroma")
    page.get_by_label("Opacity of tissue types").fill("1")
    expect_color(page, (16, 32, 48), True)


def test_who_was_faster_is_not_overwritten(page: Page, stack: Stack, atlas: str) -> None:
    page.goto(f"/atlas/{atlas}")
    other = page.context.new_page()
    other.goto(f"/atlas/{atlas}")
    for each, name in ((other, "theirs"), (page, "mine")):
        each.get_by_label("Name of type 2").fill(name)
        each.get_by_role("button", name="Save").click()
    expect(page.locator("#problem")).to_contain_text("changed by somebody else")
    store = open_store(config=stack.config)
    assert read_types(store, atlas, 3)[2].name == "theirs"


def test_a_real_slide_is_seen(page: Page, real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "wsi" / "CMU-1-Small-Region.svs", tmp_path / "cmu.svs")
    page.goto("/slides")
    page.get_by_role("button", name="Upload slides").click()
    page.get_by_label("Files").set_input_files(tmp_path / "cmu.svs")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("row", name="cmu")).to_contain_text("uploaded", timeout=30_000)
    ingest(page, "cmu", "real")
    open_slide(page, "/slides/cmu")
    expect(page.locator(".panel")).to_contain_text("2,220 × 2,967 px")
    expect(page.locator(".panel")).to_contain_text("H&E")
