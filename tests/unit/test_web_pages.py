"""Pages of datasets, trainings and reader studies, without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.gateway.web.charts import curves
from shared.errors import InputError
from shared.storage import DirectoryStore
from tests.gateway import Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set

DATASET = {
    "dataset": "d", "model": "toy", "images": 4, "steps": 1, "batch_size": 4,
    "proportions": {"tumor": 0.5}, "exports": ["coco"],
}  # fmt: skip
STUDY = {
    "study": "s", "real": [{"regions": "toy"}], "synthetic": ["d"], "images": 4,
    "readers": ["Ann <b>", "Bob"],
}  # fmt: skip
PAGES = (
    "/datasets", "/datasets/new", "/datasets/d", "/training", "/training/r", "/reader-studies",
    "/reader-studies/new", "/reader-studies/s",
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder = tmp_path_factory.mktemp("pages")
    store = DirectoryStore(folder)
    publish_toy_model(store, make_region_set(store))
    gateway = Gateway(folder)
    gateway.work(gateway.client.post("/v1/datasets", json=DATASET).json()["job"])
    assert gateway.client.post("/v1/reader-studies", json=STUDY).status_code == 201
    rows = [{"step": step, "loss": 1 / (1 + step), "lr": 0.1} for step in range(0, 900, 10)]
    store.put(
        "training/r/metrics/denoiser-00000900.jsonl", "\n".join(map(json.dumps, rows)).encode()
    )
    store.put("training/r/samples/00000900.png", b"png")
    return gateway


@pytest.mark.parametrize("place", PAGES)
def test_pages_run_only_our_own_scripts(gateway: Gateway, place: str) -> None:
    page = gateway.client.get(place)
    assert page.status_code == 200, page.text
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, attributes in re.findall(r"<(script|link|img)\b([^>]*)>", page.text):
        addresses = re.findall(r'(?:src|href)="([^"]*)"', attributes)
        assert addresses or tag == "img" or "application/json" in attributes
        assert all(address.startswith("/") and address[1] != "/" for address in addresses)
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)
    for script in re.findall(r'src="(/static/[^"]+)"', page.text):
        assert gateway.client.get(script).status_code == 200


def test_what_people_wrote_is_escaped(gateway: Gateway) -> None:
    page = gateway.client.get("/reader-studies/s").text
    assert "Ann &lt;b&gt;" in page
    assert "Ann <b>" not in page


def test_who_is_not_logged_in_is_asked_to(gateway: Gateway) -> None:
    ours = {"Origin": "http://testserver"}
    visitor = TestClient(gateway.app, headers=ours, follow_redirects=False)
    for place in PAGES:
        answer = visitor.get(place)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/login?next={place}")
    token = gateway.client.headers["Authorization"].removeprefix("Bearer ")
    assert "does not know this token" in visitor.post("/login", data={"token": "htd_x"}).text
    done = visitor.post("/login?next=/datasets", data={"token": token})
    assert done.headers["Location"] == "/datasets"
    cookie = done.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert visitor.get("/datasets").status_code == 200
    assert visitor.post("/login?next=//evil.example", data={"token": token}).status_code == 422
    theirs = {"Sec-Fetch-Site": "cross-site"}
    assert visitor.post("/login", data={"token": token}, headers=theirs).status_code == 403
    assert visitor.post("/logout").headers["Location"] == "/login"
    assert visitor.get("/").headers["Location"] == "/datasets"
    assert visitor.get("/datasets").status_code == 303


def test_an_open_gateway_lets_browsers_of_this_machine_in(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, gateway_open=True)
    home, here = "http://127.0.0.1:8000", ("127.0.0.1", 5000)
    visitor = TestClient(gateway.app, base_url=home, client=here)
    assert "<h1>Datasets</h1>" in visitor.get("/datasets?page=2").text
    cookie = visitor.cookies["htd_session"]
    admin = visitor.get("/v1/tokens", headers={"Authorization": f"Bearer {cookie}"})
    assert admin.status_code == 403
    sent = TestClient(gateway.app, base_url=home, client=here, follow_redirects=False)
    linked = sent.get("/login?next=/training", headers={"Sec-Fetch-Site": "cross-site"})
    assert 'href="/training">Go on' in linked.text

    def asked(base_url: str, client: tuple[str, int], app: Any = gateway.app) -> str:
        return TestClient(app, base_url=base_url, client=client).get("/datasets").text

    assert "Token" in asked("http://rebound.example:8000", here)
    assert "Token" in asked(home, ("192.0.2.7", 5000))
    assert "Token" in asked(home, here, Gateway(tmp_path / "closed").app)


def test_a_gateway_that_others_reach_is_never_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"HTD_GATEWAY_OPEN lets everybody in.*0\.0\.0\.0"):
        Gateway(tmp_path, gateway_open=True, gateway_host="0.0.0.0")  # noqa: S104


def test_a_session_changes_things_only_from_our_pages(gateway: Gateway) -> None:
    visitor = TestClient(gateway.app)
    visitor.cookies.set(
        "htd_session", gateway.client.headers["Authorization"].removeprefix("Bearer ")
    )
    assert visitor.get("/v1/datasets").status_code == 200
    place = "/v1/reader-studies/s/readers/r1/link"
    assert visitor.post(place).status_code == 401
    assert visitor.post(place, headers={"Origin": "http://evil.example"}).status_code == 401
    assert visitor.post(place, headers={"Origin": "http://testserver"}).status_code == 201


def test_scopes_decide_what_is_offered(gateway: Gateway) -> None:
    reader = gateway.holding("read")
    assert "/datasets/new" not in reader.get("/datasets").text
    assert reader.get("/reader-studies/s").status_code == 403
    assert "data-deploy" not in reader.get("/training").text
    assert 'data-deploy="toy/1"' in gateway.client.get("/training").text


def test_what_is_not_there_is_said_on_a_page(gateway: Gateway) -> None:
    for place, words in (
        ("/datasets/none", "there is no dataset &#39;none&#39;"),
        ("/training/none", "there is no training run &#39;none&#39;"),
        ("/reader-studies/none", "there is no reader study &#39;none&#39;"),
    ):
        page = gateway.client.get(place)
        assert page.status_code == 404
        assert page.headers["Content-Type"].startswith("text/html")
        assert words in page.text


def test_the_reading_page_is_the_same_for_everybody(gateway: Gateway) -> None:
    """Nothing on it can tell the truth, as the server does not know whose page it is."""
    pages = {
        client.get("/read").content
        for client in (TestClient(gateway.app), gateway.client, gateway.holding("read"))
    }
    assert len(pages) == 1
    assert b"<nav" not in pages.pop()


def test_a_dataset_is_asked_for_again_by_its_query(gateway: Gateway) -> None:
    page = gateway.client.get("/datasets/d").text
    (query,) = re.findall(r'href="/datasets/new\?([^"]+)"', page)
    assert "model=toy%2F1" in query
    assert "proportions=%7B%22tumor%22%3A+0.5%7D" in query
    assert "exports=coco" in query
    assert "dataset=" not in query


def test_curves_are_drawn_within_their_frame() -> None:
    rows = [
        {"step": float(step), "loss": (-1.0) ** step, "bad": float("nan")} for step in range(99)
    ]
    (loss,) = curves(rows)
    assert loss.title == "loss"
    points = [tuple(map(float, point.split(","))) for point in loss.points.split()]
    assert len(points) == 99
    assert all(0 <= x <= loss.width and 0 <= y <= loss.height for x, y in points)
    assert [text for _, text in loss.rows] == ["-1", "-0.5", "0", "0.5", "1"]
    (flat,) = curves([{"step": 0, "loss": 3.0}])
    assert flat.last == "3"


def test_results_appear_as_answers_come(gateway: Gateway) -> None:
    made = gateway.client.post("/v1/reader-studies", json=STUDY | {"study": "t"}).json()
    assert "No answers yet" in gateway.client.get("/reader-studies/t").text
    token = made["links"][0]["token"]
    reader = TestClient(gateway.app, headers={"Authorization": f"Bearer {token}"})
    for item in reader.get("/v1/reading").json()["images"]:
        body = {"answer": "real", "quality": 3, "seconds": 1}
        reader.put(f"/v1/reading/answers/{item['image']}", json=body)
    page = gateway.client.get("/reader-studies/t").text
    assert "<strong>50 %</strong>" in page
    assert "8 of 8" in page
    assert 'class="forest"' in page


def test_no_page_loads_what_it_does_not_ship() -> None:
    static = Path(__file__).parents[2] / "services" / "gateway" / "web" / "static"
    for script in static.glob("*.js"):
        text = script.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), script
        for name in re.findall(r'from "\./([^"]+)"|import "\./([^"]+)"', text):
            assert (static / next(filter(None, name))).is_file()
