"""A field is painted and made on its page, and seen with its label map."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from playwright.sync_api import Page, expect

from heterotissue.stack.supervisor import Stack
from shared.contracts.field import FieldRecord, field_key
from shared.storage import open_store
from tests.e2e.test_slides import expect_color, open_slide

SOON = 60_000  # milliseconds: the first field also loads the model


def test_a_field_is_painted_made_and_seen(page: Page, stack: Stack) -> None:
    page.goto("/fields")
    page.get_by_role("link", name="New field").click()
    expect(page.get_by_label("Model")).to_have_value("toy/1")
    expect(page.locator("#gallery img").first).to_be_visible()
    expect(page.get_by_role("button", name="Sampled")).to_be_disabled()  # it has no layout model
    box = page.locator("#map").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2
    for tissue, tool, spots in (
        ("stroma", "Fill", [(box["x"] + 9, box["y"] + 9)]),
        ("tumor", "Polygon", [
            (middle, box["y"] + 1), (box["x"] + box["width"] - 1, box["y"] + 1),
            (box["x"] + box["width"] - 1, box["y"] + box["height"] - 1),
            (middle, box["y"] + box["height"] - 1), (middle, box["y"] + 1),
        ]),
    ):  # fmt: skip
        page.get_by_role("radio", name=tissue).check()
        page.get_by_role("button", name=tool).click()
        for spot in spots:
            page.mouse.click(*spot)
    expect(page.locator("#classes output")).to_have_text(["0 %", "50 %", "50 %"])
    page.get_by_role("button", name="Pick for all classes").click()
    expect(page.locator(".chosen:visible")).to_have_count(2)
    page.get_by_label("Name").fill("drawn")
    page.get_by_label("Steps").fill("1")
    page.get_by_role("button", name="Make the field").click()
    expect(page.locator("#viewer[data-open]")).to_be_attached(timeout=SOON)
    store = open_store(config=stack.config)
    record = store.get_model(field_key("drawn", "field.json"), FieldRecord)
    labels = tifffile.imread(io.BytesIO(store.get(field_key("drawn", "labels.tiff"))))
    np.testing.assert_array_equal(labels, np.tile(np.repeat([1, 2], 32), (64, 1)))
    assert all(crop.regions == "toy" for crop in record.crops)
    tumor = record.classes.items[2].color
    page.get_by_label("Opacity of label map").fill("1")
    expect_color(page, tumor, True)
    page.get_by_label("Label map", exact=True).uncheck()
    expect_color(page, tumor, False)
    open_slide(page, "/fields/drawn")
    page.goto("/fields")
    expect(page.get_by_role("row", name="drawn")).to_contain_text("64 × 64")

    page.goto("/fields/new")  # another field of this name is refused in words
    expect(page.locator("#gallery img").first).to_be_visible()
    page.get_by_label("Name").fill("drawn")
    page.get_by_role("button", name="Make the field").click()
    expect(page.locator("#problem")).to_contain_text("fields/drawn was made by job")
