"""Pictures of the pages for the docs, of a gateway that runs.

HTD_TOKEN=… python -m tests.e2e.screenshots http://127.0.0.1:8000 docs/images \
    reader-study=/reader-studies/first dataset=/datasets/d training=/training/r
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.e2e.conftest import FLAGS

WIDTH, HEIGHT = 1200, 900
MOST_HEIGHT = 1500
QUALITY = 80


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="+", help="<name of the picture>=<place>")
    asked = parser.parse_args()
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(base_url=asked.server, viewport={"width": WIDTH, "height": HEIGHT})
        page.goto("/login")
        page.get_by_label("Token").fill(os.environ["HTD_TOKEN"])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/datasets")
        for item in asked.pages:
            name, _, place = item.partition("=")
            page.goto(place)
            if place.startswith("/read#"):
                page.locator("#start").click()
                page.keyboard.press("s")
                page.keyboard.press("4")
            page.wait_for_function("[...document.images].every((item) => item.complete)")
            page.wait_for_timeout(500)
            with Image.open(io.BytesIO(page.screenshot(full_page=True))) as picture:
                cut = picture.crop((0, 0, picture.width, min(picture.height, MOST_HEIGHT)))
                cut.save(asked.folder / f"{name}.webp", quality=QUALITY)
        browser.close()


if __name__ == "__main__":
    main()
