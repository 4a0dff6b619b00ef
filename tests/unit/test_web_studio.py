"""The studio's pages, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.contracts.base import Classes
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

EVIL = "</script><b>tumor"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("studio")
    store = DirectoryStore(folder)
    record = make_region_set(store)
    publish_toy_model(store, record.model_copy(update={"classes": Classes.of("stroma", EVIL)}))
    return Gateway(folder)


def models(page: str) -> list[dict[str, Any]]:
    (text,) = re.findall(r'<script type="application/json" id="models">(.*?)</script>', page)
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_the_page_says_what_scripts_need_of_a_model(gateway: Gateway) -> None:
    (model,) = models(gateway.client.get("/studio").text)
    record = gateway.client.get("/v1/models/toy/1").json()["record"]
    assert model["classes"] == record["classes"]["items"]
    assert (model["size"], model["first"], model["regions"]) == (32, 1, "toy")
    assert model["sampling"] == {
        "steps": 10, "guidance_map": 1.75, "guidance_crops": 1.75, "staining": 0.7,
    }  # fmt: skip
    assert model["crop"] == {"least": 8, "most": 12}
    assert not model["student"]


@pytest.mark.parametrize("place", ["/studio", "/studio/edit"])
def test_names_of_classes_cannot_become_markup(gateway: Gateway, place: str) -> None:
    page = gateway.client.get(place).text
    assert models(page)[0]["classes"][2]["name"] == EVIL
    assert EVIL not in page


@pytest.mark.parametrize(
    ("place", "script"),
    [("/studio", "/static/studio.js"), ("/studio/edit", "/static/studio_edit.js")],
)
def test_it_runs_only_our_own_scripts(gateway: Gateway, place: str, script: str) -> None:
    page = gateway.client.get(place)
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)
    assert re.findall(r'<script type="module" src="([^"]+)"', page.text) == [script]
    assert gateway.client.get(script).status_code == 200
    assert gateway.client.get("/static/studio.css").status_code == 200


def test_only_who_may_generate_is_let_in(gateway: Gateway) -> None:
    for place in ("/studio", "/studio/edit"):
        assert gateway.holding("read", "annotate", "train").get(place).status_code == 403
    assert gateway.holding("read", "generate").get("/studio").status_code == 200
    visitor = TestClient(gateway.app, follow_redirects=False).get("/studio")
    assert (visitor.status_code, visitor.headers["Location"]) == (303, "/login?next=/studio")


def test_without_a_model_it_leads_to_training(tmp_path: Path) -> None:
    page = Gateway(tmp_path).client.get("/studio")
    assert page.status_code == 200
    assert "There is no model yet" in page.text
    assert 'href="/training"' in page.text
    assert "<canvas" not in page.text
