"""Pages of datasets, trainings and reader studies, without a browser."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from services.gateway.api import session
from services.gateway.web.charts import curves
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


def test_a_session_is_no_token_and_ends_at_log_out(gateway: Gateway) -> None:
    token, record = gateway.resources.tokens.create("ann", "local", ("read",))
    ours = {"Origin": "http://testserver"}

    def visitor() -> TestClient:
        made = TestClient(gateway.app, headers=ours, follow_redirects=False)
        made.post("/login", data={"token": token})
        assert made.get("/datasets").status_code == 200
        return made

    first, second = visitor(), visitor()
    sessions = [each.cookies["htd_session"] for each in (first, second)]
    assert len({*sessions, token}) == 3
    stored = "".join(gateway.resources.root.get(key).decode() for key in _access(gateway))
    assert not any(secret in stored for secret in (*sessions, token))
    bare = TestClient(gateway.app, headers=ours, follow_redirects=False)
    for cookie in sessions:
        assert bare.get("/v1/datasets", headers={"Authorization": f"Bearer {cookie}"}).is_error
    bare.cookies.set("htd_session", token)
    assert bare.get("/datasets").status_code == 303
    assert first.post("/logout", headers={"Origin": "http://evil.example"}).status_code == 403
    root = gateway.resources.root
    kept = {key: root.get(key) for key in root.list("access/sessions/")}
    assert first.post("/logout").headers["Location"] == "/login"
    bare.cookies.set("htd_session", sessions[0])  # a copy of the cookie ends with the session
    assert bare.get("/datasets").status_code == 303
    for key, data in kept.items():  # as a backup of the time before does
        root.put(key, data)
    assert bare.get("/datasets").status_code == 303
    assert second.get("/datasets").status_code == 200
    gateway.resources.tokens.revoke(record)
    assert second.get("/datasets").status_code == 303
    audited = gateway.client.get("/v1/audit").json()["items"]
    assert [item["action"] for item in audited if "ann" in item.values()] == [
        "log in", "log in", "log out",
    ]  # fmt: skip


def _access(gateway: Gateway) -> list[str]:
    return list(gateway.resources.root.list("access/"))


def test_a_link_begins_one_session(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = gateway.resources.sessions
    link = sessions.make_link("browser", ("read",))
    root = gateway.resources.root
    kept = {key: root.get(key) for key in root.list("access/links/")}
    visitor = TestClient(gateway.app, follow_redirects=False)
    assert 'href="/datasets">Go on' in visitor.get(f"/login?link={link}").text
    assert visitor.get("/datasets").status_code == 200
    assert visitor.get("/v1/tokens").status_code == 403
    other = TestClient(gateway.app, follow_redirects=False)
    assert "was used, or is old" in other.get(f"/login?link={link}").text
    for key, data in kept.items():  # as a backup of the time before does
        root.put(key, data)
    assert "was used, or is old" in other.get(f"/login?link={link}").text
    assert other.get("/datasets").status_code == 303
    monkeypatch.setattr(session, "LINK_HOURS", -1)
    assert sessions.follow_link(sessions.make_link("browser", ("read",))) is None
    monkeypatch.setattr(session, "SESSION_HOURS", -1)
    monkeypatch.setattr(session, "LINK_HOURS", 1)
    begun = sessions.follow_link(sessions.make_link("browser", ("read",)))
    assert begun is not None
    assert sessions.find(begun) is None


def test_a_log_in_stays_on_this_host(gateway: Gateway) -> None:
    token = gateway.client.headers["Authorization"].removeprefix("Bearer ")
    visitor = TestClient(
        gateway.app, headers={"Origin": "http://testserver"}, follow_redirects=False
    )
    for place in ("//evil.example", "/\\evil.example", "/\t/evil.example", "/\n/evil.example",
                  "/\r\n/evil", "\t//evil.example", "https://evil.example", "/a\\b", "/ /evil",
                  "/\x00/evil", "/\u00a0/evil", "", "evil"):  # fmt: skip
        for ask in (visitor.get, partial(visitor.post, data={"token": token})):
            assert ask("/login", params={"next": place}).status_code == 422, place
    kept = visitor.get("/datasets?page=2&x=ä b").headers["Location"]
    done = visitor.post(kept, data={"token": token})
    assert done.headers["Location"] == "/datasets?page=2&x=%C3%A4%20b"


def test_a_session_changes_things_only_from_our_pages(gateway: Gateway) -> None:
    visitor = TestClient(gateway.app)
    token = gateway.client.headers["Authorization"].removeprefix("Bearer ")
    visitor.cookies.set("htd_session", str(gateway.resources.sessions.begin(token)))
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
