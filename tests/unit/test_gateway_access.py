"""The HTTP API's tokens, scopes, tenants, quotas and audit log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from anyio import CapacityLimiter
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisConnectionError

from services.gateway.api import json_bodies, limits, tokens
from services.gateway.api.problems import ProblemError
from services.gateway.api.tokens import Tokens
from services.gateway.app import make_app
from services.gateway.reader_study import links
from services.gateway.signing import SignedRecords
from shared.errors import InputError
from shared.queue.tenants import ledger_of, tenant_ledger
from shared.settings import Settings
from shared.storage import DirectoryStore
from tests.gateway import KEY, Gateway
from tests.models import publish_toy_model
from tests.region_sets import make_region_set
from tests.unit.test_gateway_datasets import BODY


def test_the_first_token_is_made_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    records = SignedRecords(store, KEY)
    token = Tokens(records).create_first()
    assert token is not None
    assert Tokens(records).create_first() is None
    assert all(token not in store.get(key).decode() for key in store.list())
    found = Tokens(records).find(token)
    assert found is not None
    assert (found.tenant, found.scopes) == ("local", ("admin",))
    assert Tokens(records).find(token[:-1] + ("a" if token[-1] != "a" else "b")) is None


def test_who_writes_to_the_store_cannot_make_a_token(gateway: Gateway) -> None:
    root, records = gateway.resources.root, gateway.resources.records
    drawn = "htd_" + "A" * 43
    record = {
        "id": tokens.digest_of(drawn)[:16], "name": "me", "tenant": "local",
        "scopes": ["admin"], "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    place = f"access/tokens/{tokens.digest_of(drawn)}.json"
    mine = {"Authorization": f"Bearer {drawn}"}
    own = records._mac(place, record)
    for number, forged in enumerate((
        record,
        {"record": record, "mac": ""},
        {"record": record, "mac": SignedRecords(root, "another key")._mac(place, record)},
        {"record": record, "mac": records._mac("access/tokens/other.json", record)},
        {"record": record | {"tenant": "acme"}, "mac": own},
    )):  # fmt: skip
        root.put_json(place, forged)
        assert gateway.client.get("/v1/slides", headers=mine).status_code == 401, number
        assert gateway.client.get("/v1/tokens").status_code == 200
    root.put_json(place, {"record": record, "mac": own})
    assert gateway.client.get("/v1/slides", headers=mine).status_code == 200
    # A record that was signed for one secret is not one for another.
    root.put(place.replace(".json", "0.json"), root.get(place))
    assert len(gateway.resources.tokens.all("local")) == 2
    reading = links.make_link(records, "local", "s", "r1")
    (key,) = root.list("access/readings/")
    root.put_json(key, root.get_json(key)["record"])
    assert links.find_link(records, reading) is None


def test_a_gateway_without_a_key_does_not_start(tmp_path: Path) -> None:
    for key, words in (("", "not set"), ("short", "too short")):
        config = Settings(store=str(tmp_path), broker_url="redis://127.0.0.1:1/0", gateway_key=key)
        with pytest.raises(InputError, match=f"HTD_GATEWAY_KEY is {words}.*openssl rand"):
            make_app(config)


def test_wrong_tokens_are_logged_and_limited(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": "Bearer htd_" + "x" * 43}
    gateway.resources.wrong.most = 3
    answers = [gateway.client.get("/v1/slides", headers=headers).status_code for _ in range(5)]
    assert answers == [401, 401, 401, 429, 429]
    assert caplog.text.count("testclient sent a wrong token") == 3
    assert "xxxx" not in caplog.text
    assert gateway.client.get("/v1/datasets").status_code == 200  # a right token is served
    tries = [
        gateway.client.post(
            "/login", data={"token": "htd_x"}, headers={"Origin": "http://testserver"}
        ).status_code
        for _ in range(limits.MAX_WRONG_LOG_INS + 1)
    ]
    assert tries == [200] * limits.MAX_WRONG_LOG_INS + [429]


def test_without_a_token_there_is_nothing(gateway: Gateway) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer htd_x"}):
        answer = gateway.client.get("/v1/datasets", headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.json()["type"].endswith("unauthorized")


@pytest.mark.parametrize("origin", ["http://[", "http://]", "http://\u2100.example", "null", ""])
def test_an_origin_that_is_no_address_is_foreign(gateway: Gateway, origin: str) -> None:
    anyone = TestClient(gateway.app, raise_server_exceptions=False)
    headers = {"Origin": origin.encode()}
    for method, place in (("POST", "/v1/datasets"), ("PUT", "/v1/slides/s/source/s.svs"),
                          ("DELETE", "/v1/datasets/d")):  # fmt: skip
        answer = anyone.request(method, place, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, answer.text
    for place in ("/login", "/logout"):
        answer = anyone.post(place, data={"token": "x"}, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 403, answer.text


def test_a_sender_is_one_in_every_spelling(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def noted(most: int, key: str) -> CapacityLimiter:
        keys.append(key)
        return CapacityLimiter(most)

    monkeypatch.setattr(json_bodies._parsing, "of", noted)
    token, _ = gateway.resources.tokens.create("ann", "local", ("annotate",))
    visitor = TestClient(gateway.app, headers={"Origin": "http://testserver"})
    for spelling in (f"Bearer {token}", f"bEaReR {token}", f"Bearer   {token}  "):
        answer = visitor.post("/v1/slides", json={}, headers={"Authorization": spelling})
        assert answer.status_code == 422
    visitor.post("/login", data={"token": token}, follow_redirects=False)
    assert visitor.post("/v1/slides", json={}).status_code == 422
    gateway.client.post("/v1/slides", json={})
    assert len(keys) == 5
    assert len({*keys[:4]}) == 1
    assert keys[4] != keys[0]


def test_scopes_are_kept_apart(gateway: Gateway) -> None:
    reader, maker = gateway.holding("read"), gateway.holding("generate")
    assert reader.get("/v1/datasets").status_code == 200
    assert maker.get("/v1/datasets").status_code == 403
    assert reader.post("/v1/datasets", json=BODY).status_code == 403
    assert maker.post("/v1/datasets", json=BODY).status_code == 202
    assert maker.post("/v1/embed", json={"cohort": "c"}).status_code == 403
    assert reader.get("/v1/tokens").status_code == 403


def test_tokens_are_made_and_revoked(gateway: Gateway) -> None:
    made = gateway.client.post("/v1/tokens", json={"name": "ann", "scopes": ["read"]}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert gateway.client.get("/v1/datasets", headers=headers).status_code == 200
    listed = gateway.client.get("/v1/tokens").json()
    assert made["record"] in listed
    root = gateway.resources.root
    kept = {key: root.get(key) for key in root.list("access/tokens/")}
    assert gateway.client.delete(f"/v1/tokens/{made['record']['id']}").status_code == 204
    assert gateway.client.get("/v1/datasets", headers=headers).status_code == 401
    for key, record in kept.items():  # as a backup of the time before does
        root.put(key, record)
    assert gateway.client.get("/v1/datasets", headers=headers).status_code == 401
    assert made["record"] not in gateway.client.get("/v1/tokens").json()


def test_several_gateways_of_one_store_are_one(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "KNOWN_SECONDS", 0.0)
    one, other = gateway.client, Gateway(tmp_path).client
    key = {"Idempotency-Key": "k"}
    job = one.post("/v1/datasets", json=BODY, headers=key).json()["job"]
    assert other.post("/v1/datasets", json=BODY, headers=key).json()["job"] == job
    assert other.post("/v1/datasets/d/cancel").json()["state"] == "cancelled"
    assert one.get("/v1/datasets/d").json()["state"] == "cancelled"
    begun = one.post("/v1/slides/s/uploads", json={"file": "s.svs", "bytes": 3})
    part = begun.json()["missing"][0]["url"]
    assert other.put(part, content=b"abc").status_code == 204
    done = one.post(f"{begun.headers['Location']}/complete")
    assert done.json()["files"] == other.get("/v1/slides/s").json()["files"]
    made = one.post("/v1/tokens", json={"name": "ann", "scopes": ["read"]}).json()
    ann = {"Authorization": f"Bearer {made['token']}"}
    assert other.get("/v1/slides", headers=ann).status_code == 200
    one.delete(f"/v1/tokens/{made['record']['id']}")
    assert other.get("/v1/slides", headers=ann).status_code == 401


def test_tenants_do_not_see_each_other(gateway: Gateway) -> None:
    token = {"name": "t", "scopes": ["admin"], "tenant": "acme"}
    assert gateway.client.post("/v1/tokens", json=token).status_code == 422
    assert gateway.client.put("/v1/tenants/acme", json={"images_per_day": 10}).status_code == 200
    made = gateway.client.post("/v1/tokens", json=token).json()["token"]
    theirs = gateway.holding("admin", tenant="acme")
    theirs.headers["Authorization"] = f"Bearer {made}"
    assert theirs.post("/v1/datasets", json=BODY).status_code == 422  # no such model of theirs
    store = tenant_ledger(gateway.config, "acme").store
    publish_toy_model(store, make_region_set(store))
    theirs.put("/v1/slides/s/source/s.svs", content=b"theirs")
    assert gateway.client.get("/v1/slides").json()["items"] == []
    assert gateway.client.get("/v1/slides/s").status_code == 404
    assert [item["slide"] for item in theirs.get("/v1/slides").json()["items"]] == ["s"]
    assert theirs.get("/v1/tenants").status_code == 403
    assert theirs.put("/v1/tenants/local", json={}).status_code == 403
    assert theirs.post("/v1/tokens", json=token | {"tenant": "local"}).status_code == 403
    assert {item["tenant"] for item in theirs.get("/v1/tokens").json()} == {"acme"}


def test_the_local_tenant_does_not_read_others_through_the_root(gateway: Gateway) -> None:
    gateway.client.put("/v1/tenants/acme", json={})
    gateway.holding("annotate", tenant="acme").put("/v1/slides/s/source/s.svs", content=b"theirs")
    ours = gateway.holding("annotate")
    theirs = "tenants/acme/slides/s/source/s.svs"
    assert gateway.resources.root.exists(theirs)
    for place, body, field in (
        ("/v1/slides", {"slide": "x", "source": theirs}, "#/source"),
        ("/v1/ingest", {"cohort": "c", "slides": [{"slide": "x", "source": theirs}]},
         "#/slides/0/source"),
        ("/v1/slides", {"slide": "x", "source": "access/tenants/acme.json"}, "#/source"),
    ):  # fmt: skip
        answer = ours.post(place, json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, field)
        assert "not a key of your tenant" in answer.json()["detail"]


def test_a_tenants_job_is_done_in_its_own_part_of_the_store(gateway: Gateway) -> None:
    gateway.client.put("/v1/tenants/acme", json={})
    store = tenant_ledger(gateway.config, "acme").store
    publish_toy_model(store, make_region_set(store))
    theirs = gateway.holding("admin", tenant="acme")
    job = theirs.post("/v1/datasets", json=BODY).json()["job"]
    own = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    assert job == f"acme.{own}"
    assert ledger_of(gateway.config, job).store.url == store.url
    assert gateway.work(job).state == "done"
    assert theirs.get("/v1/datasets/d").json()["state"] == "done"
    assert gateway.client.get("/v1/datasets/d").json()["state"] == "planning"
    assert gateway.client.get(f"/v1/jobs/{job}").status_code == 404
    assert all(key.startswith("tenants/acme/") for key in gateway.resources.root.list("tenants/"))


def test_a_quota_without_anything_to_count_with_refuses(gateway: Gateway) -> None:
    gateway.client.put("/v1/tenants/local", json={"images_per_day": 10})
    assert gateway.client.post("/v1/datasets", json=BODY).status_code == 503


def test_without_redis_rates_are_not_limited(gateway: Gateway) -> None:
    with pytest.raises(RedisConnectionError):
        gateway.resources.redis.ping()
    gateway.resources.limits.count_request("a")


def test_requests_that_are_kept_count_as_uploaded(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"upload_bytes": 1000}

    @contextmanager
    def spending(_: object, tenant: str, quota: str, amount: int, limit: object) -> Iterator[None]:
        if amount > left.setdefault(quota, 10**6):
            raise ProblemError(429, "quota", "too little is left")
        left[quota] -= amount
        yield

    monkeypatch.setattr(limits.Limits, "spending", spending)
    root, client = gateway.resources.root, gateway.client
    small = {"cohort": "c", "slides": [{"slide": "s", "source": "slides/s/source/s.svs"}]}
    root.put("slides/s/source/s.svs", b"x")
    before = set(root.list())
    heavy = small | {"label_names": {"z" * 2000: "a"}}
    refused = client.post("/v1/ingest", json=heavy)
    assert refused.status_code == 429, refused.text
    assert set(root.list()) == before
    left["upload_bytes"] = 10_000
    job = client.post("/v1/ingest", json=heavy).json()["job"]
    spent = 10_000 - left["upload_bytes"]
    assert 2000 < spent < 6000
    assert client.post("/v1/ingest", json=heavy).json()["job"] == job  # it is there already
    assert 10_000 - left["upload_bytes"] == spent


def test_the_audit_log_copies_no_large_request(gateway: Gateway) -> None:
    root = gateway.resources.root
    root.put("slides/s/source/s.svs", b"x")
    body = {
        "cohort": "c",
        "slides": [{"slide": "s", "source": "slides/s/source/s.svs"}],
        "label_names": {"z" * 100_000: "a"},
    }
    job = gateway.client.post("/v1/ingest", json=body).json()["job"]
    (item,) = gateway.client.get("/v1/audit").json()["items"]
    assert (item["job"], set(item["request"])) == (job, {"bytes", "sha256"})
    assert item["request"]["bytes"] > 100_000
    assert sum(map(root.size, root.list("audit/"))) < 1000


def test_what_was_made_from_what_is_in_the_audit_log(gateway: Gateway) -> None:
    job = gateway.client.post("/v1/datasets", json=BODY).json()["job"]
    gateway.client.post("/v1/datasets/d/cancel")
    items = gateway.client.get("/v1/audit").json()["items"]
    assert [item["action"] for item in items] == ["submit synthesize", "cancel"]
    assert (items[0]["job"], items[0]["token"], items[0]["request"]["model"]) == (
        job, "tester", "toy",
    )  # fmt: skip
