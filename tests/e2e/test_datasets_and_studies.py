"""A dataset is asked for, watched, downloaded; then read blind by keyboard, with its results."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from heterotissue.stack.supervisor import Stack
from shared.datasets.samples import read_shard
from shared.imaging.codec import encode_png
from shared.storage import open_store

PICTURE = encode_png(np.full((8, 8, 3), 200, np.uint8))


def request_dataset(page: Page, name: str, query: str = "") -> None:
    page.goto(f"/datasets/new{query}")
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Request").click()
    page.wait_for_url(f"**/datasets/{name}")
    expect(page.locator("#state")).to_have_text("done", timeout=60_000)


def test_a_dataset_is_asked_for_watched_and_opened(page: Page, tmp_path: Path) -> None:
    page.goto("/datasets/new?model=toy/1&images=12&steps=2&exports=coco")
    expect(page.get_by_label("Images")).to_have_value("12")
    expect(page.locator("#estimate")).to_contain_text("no dataset yet")
    page.get_by_label("as I say").check()
    first, second = page.locator("#shares input").all()
    first.fill("0.7")
    expect(second).to_have_value("0.3")
    page.get_by_label("Name").fill("watched")
    page.get_by_role("button", name="Request").click()
    page.wait_for_url("**/datasets/watched")
    expect(page.locator("#state")).to_have_text("done", timeout=60_000)
    expect(page.locator("#live")).to_contain_text("12 of 12 images")
    expect(page.locator("#sheet")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Everything as one tar").click()
    path = tmp_path / "d.tar"
    download.value.save_as(path)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        shard = tar.extractfile("watched/shards/000000.tar")
        assert shard is not None
        samples = list(read_shard(shard.read()))
    assert len(samples) == 12
    assert any(name.startswith("watched/exports/coco") for name in names)
    page.get_by_role("link", name="Another like this").click()
    expect(page.get_by_label("as I say")).to_be_checked()
    expect(page.locator("#estimate")).to_contain_text("derived from 12 images")


def test_what_cannot_be_made_is_said_in_the_form(page: Page) -> None:
    page.goto("/datasets/new?model=toy/1&split=val")
    page.get_by_label("Name").fill("never")
    expect(page.locator("#problem")).to_contain_text("no region in val")
    page.get_by_role("button", name="Request").click()
    expect(page.locator("#problem")).to_contain_text("no region in val")
    expect(page.get_by_role("button", name="Request")).to_be_enabled()


def test_a_study_is_made_read_by_keyboard_and_its_results_seen(page: Page) -> None:
    request_dataset(page, "read", "?images=8&steps=1")
    page.goto("/reader-studies/new")
    page.get_by_label("Name").fill("blind")
    page.locator("[name=dataset][value=read]").check()
    page.get_by_label("Images of each kind").fill("2")
    page.get_by_label("Readers, one a line").fill("Ann\nBob")
    page.get_by_role("button", name="Make the study").click()
    link = page.get_by_label("Link for Ann").input_value()

    page.get_by_role("link", name="To the study").click()
    row = page.get_by_role("row", name="Ann").first
    expect(row).to_contain_text("0 of 4")

    reader = page.context.browser.new_context().new_page()  # type: ignore[union-attr]
    sent: list[str] = []
    reader.on("request", lambda request: sent.append(request.url))
    reader.goto(link)
    expect(reader.get_by_role("button", name="Start")).to_be_focused()
    reader.keyboard.press("Enter")
    for number in range(3):
        expect(reader.locator("#count")).to_have_text(f"{number + 1} of 4")
        expect(reader.locator("#picture")).to_be_visible()
        reader.keyboard.press("s" if number % 2 else "r")
        reader.keyboard.press(str(number + 2))
        if number == 1:
            reader.keyboard.press("n")
            reader.keyboard.type("r2 in a note is text")
        reader.keyboard.press("Enter")
    expect(reader.locator("#count")).to_have_text("4 of 4")
    expect(row).to_contain_text("3 of 4", timeout=20_000)  # without a reload
    reader.close()  # and comes back another day, on another machine

    again = page.context.browser.new_context(viewport={"width": 820, "height": 1180}).new_page()  # type: ignore[union-attr]
    again.goto(link)
    again.get_by_role("button", name="Go on").click()
    expect(again.locator("#count")).to_have_text("4 of 4")
    again.keyboard.press("ArrowLeft")
    again.keyboard.press("ArrowLeft")
    expect(again.locator("#count")).to_have_text("2 of 4")
    expect(again.get_by_label("Synthetic")).to_be_checked()
    expect(again.get_by_label("Note")).to_have_value("r2 in a note is text")
    again.keyboard.press("ArrowRight")
    again.keyboard.press("ArrowRight")
    expect(again.locator("#picture")).to_be_visible()
    again.locator(".kind").get_by_text("Real").click()
    again.locator(".quality").get_by_text("5", exact=True).click()
    again.get_by_role("button", name="Next").click()
    again.get_by_role("button", name="Submit").click()
    expect(again.get_by_role("heading", name="Thank you")).to_be_visible()
    again.goto("about:blank")
    again.goto(link)
    expect(again.get_by_role("heading", name="Thank you")).to_be_visible()
    again.context.close()
    token = link.partition("#")[2]
    assert sent
    assert not any(token in address for address in sent)

    expect(row).to_contain_text("4 of 4", timeout=20_000)
    expect(row).to_contain_text("UTC")
    expect(page.get_by_role("heading", name="Results")).to_contain_text("so far")
    expect(page.locator(".forest").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Answers as CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 5
    assert "r2 in a note is text" in "".join(lines)


def test_a_link_that_opens_nothing_says_so(page: Page) -> None:
    page.goto("/read#htr_none")
    expect(page.get_by_role("heading", name="This link does not open a study")).to_be_visible()


def test_a_run_shows_its_curves_and_its_samples_over_time(page: Page, stack: Stack) -> None:
    store = open_store(config=stack.config)
    rows = "\n".join(f'{{"step": {step}, "loss": {1 / (1 + step)}}}' for step in range(50))
    store.put("training/shown/metrics/denoiser-00000050.jsonl", rows.encode())
    for step in ("00000010", "00000050"):
        store.put(f"training/shown/samples/{step}.png", PICTURE)
    page.goto("/training")
    page.get_by_role("link", name="shown").click()
    expect(page.get_by_role("img", name="loss over steps")).to_be_visible()
    expect(page.locator("#step")).to_have_text("50")
    page.locator("#sample").fill("0")
    expect(page.locator("#step")).to_have_text("10")
    expect(page.locator("#sheet")).to_have_attribute("src", "/v1/runs/shown/samples/00000010.png")
