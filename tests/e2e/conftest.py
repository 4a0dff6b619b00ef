"""Chromium on the pages of a real local stack: Redis, S3, workers, gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from heterotissue.stack.supervisor import Stack
from services.gateway.api.session import COOKIE, Sessions
from services.gateway.api.tokens import Tokens
from services.gateway.signing import SignedRecords
from shared.storage import open_store
from tests.integration.conftest import QUICK
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, with a toy model of two tissues."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUICK | {"HTD_GATEWAY_REQUESTS_PER_MINUTE": "100000"}).items():
            patch.setenv(name, value)
        with Stack(
            tmp_path_factory.mktemp("e2e"),
            ["synthesize", "image", "ingest", "field"],
            print,
            gateway=True,
        ) as stack:
            store = open_store(config=stack.config)
            publish_toy_model(store, make_region_set(store))
            yield stack


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser, or a skip where there is none; its event loop ends with the module's tests."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(stack: Stack, chromium: Browser) -> Iterator[Page]:
    """A page; errors in its scripts fail the test."""
    context = chromium.new_context(base_url=stack.url, accept_downloads=True)
    records = SignedRecords.of(open_store(config=stack.config), stack.gateway_config)
    sessions = Sessions(records, Tokens(records))
    link = sessions.make_link("browser", ("read", "annotate", "generate", "train"))
    session = str(sessions.follow_link(link))
    context.add_cookies([{"name": COOKIE, "value": session, "url": stack.url}])
    found = context.new_page()
    errors: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.goto("/datasets")  # a local stack asks for no token
    found.wait_for_url("**/datasets")
    yield found
    context.close()
    assert errors == []
