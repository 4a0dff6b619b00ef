"""The HTTP API on real Redis, S3 and workers, through the client."""

from __future__ import annotations

import os
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from heterotissue.client import Client, RefusedError
from heterotissue.stack.supervisor import Stack
from services.gateway.api import limits
from services.gateway.api.limits import Limits
from services.gateway.api.problems import ProblemError
from services.synthesize.stage import SynthesizeStage
from shared.contracts.gateway import CropBody, ImageBody
from shared.contracts.reader_study import RealSet, StudyBody
from shared.contracts.synthesize import DatasetRequest
from shared.imaging.codec import decode_png, encode_png
from shared.jobs import Ledger, run_job
from shared.phantom import write_phantom
from shared.queue.redis_state import connect
from shared.queue.tenants import tenant_ledger
from shared.settings import Settings
from shared.storage import DirectoryStore, open_store
from tests.gateway import Gateway
from tests.integration.conftest import QUICK, wait_for
from tests.models import publish_toy_model
from tests.phantoms import PHANTOM_SEED
from tests.region_sets import make_region_set
from tests.unit.test_cli import htd


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis, S3, the gateway, and the workers of synthesize and image."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUICK | {"HTD_GATEWAY_REQUESTS_PER_MINUTE": "100000"}).items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("gateway")
        with Stack(folder, ["synthesize", "image"], print, gateway=True) as stack:
            store = open_store(config=stack.config)
            publish_toy_model(store, make_region_set(store))
            yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client with the administrator's token."""
    with Client(stack.url, str(stack.token)) as client:
        yield client


def request(dataset: str, images: int = 12, **fields: object) -> DatasetRequest:
    options = {"model": "toy", "steps": 2, "shard_size": 4, "batch_size": 4} | fields
    return DatasetRequest.model_validate({"dataset": dataset, "images": images} | options)


def test_the_stacks_link_opens_the_pages_once(stack: Stack) -> None:
    link = str(stack.link)
    with httpx2.Client() as browser:
        assert browser.get(f"{stack.url}/datasets").status_code == 303
        assert "You are logged in" in browser.get(link).text
        assert browser.get(f"{stack.url}/datasets").status_code == 200
    assert "was used" in httpx2.get(link).text
    key = (stack.folder / "gateway.key").read_text()
    assert not any(key in path.read_text() for path in (stack.folder / "logs").iterdir())
    assert key not in (stack.folder / "env").read_text()


def test_a_reader_study_over_http(stack: Stack, client: Client) -> None:
    client.submit_dataset(request("shown"))
    assert [status.state for status in client.watch_dataset("shown")][-1] == "done"
    assert client.estimate_dataset(request("more", images=24)).measured_images >= 12
    body = StudyBody(
        study="s", real=(RealSet(regions="toy"),), synthetic=("shown",), images=3, readers=("Ann",)
    )
    (link,) = client.make_reader_study(body).links
    with pytest.raises(RefusedError, match="reader study 's' exists already"):
        client.make_reader_study(body)
    link = client.renew_reader_link("s", link.reader)
    headers = {"Authorization": f"Bearer {link.token}"}
    with httpx2.Client(base_url=stack.url, headers=headers, timeout=60) as reader:
        images = [item["image"] for item in reader.get("/v1/reading").json()["images"]]
        lengths = set()
        for image in images:
            lengths.add(len(reader.get(f"/v1/reading/images/{image}").content))
            answer = {"answer": "real", "quality": 4, "seconds": 1.5}
            assert reader.put(f"/v1/reading/answers/{image}", json=answer).status_code == 200
        assert reader.post("/v1/reading/submit").status_code == 200
    assert len(lengths) == 1
    (progress,) = client.reader_study("s").readers
    assert (progress.answered, progress.submitted is None) == (6, False)
    results = client.study_results("s")
    assert (results.complete, results.pooled.accuracy.value) == (True, 0.5)
    assert len(client.study_answers("s").splitlines()) == 7
    assert [study.study for study in client.reader_studies()] == ["s"]
    client.delete_reader_study("s")
    assert list(client.reader_studies()) == []


def test_a_dataset_over_http_has_the_bytes_of_one_in_process(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "store")
    publish_toy_model(store, make_region_set(store))
    ledger = Ledger(store)
    run_job(ledger, SynthesizeStage(), ledger.submit(request("whole")), config=Settings())
    before = metrics(stack)
    client.submit_dataset(request("whole"))
    seen = list(client.watch_dataset("whole"))
    assert (seen[-1].state, seen[-1].made, seen[-1].shards_done) == ("done", 12, 3)
    assert all(one.made <= other.made for one, other in pairwise(seen))
    client.download_dataset("whole", tmp_path / "d")
    found = [path for path in sorted((tmp_path / "d").rglob("*")) if path.is_file()]
    assert len(found) == 8
    for path in found:
        key = f"datasets/whole/{path.relative_to(tmp_path / 'd').as_posix()}"
        assert path.read_bytes() == store.get(key), key
    assert client.submit_dataset(request("whole")).state == "done"
    after = metrics(stack)
    for figure, more in (
        ('htd_units_total{outcome="done",stage="synthesize"}', 5),
        ('htd_images_total{stage="synthesize"}', 12),
    ):
        assert after[figure] - before.get(figure, 0) == more
    assert after['htd_queue_length{stage="synthesize"}'] == 0


def metrics(stack: Stack) -> dict[str, float]:
    """What the gateway tells Prometheus, by name and labels."""
    lines = httpx2.get(f"{stack.url}/metrics").text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    }


def test_an_image_overtakes_a_dataset(client: Client) -> None:
    client.submit_dataset(request("bulk", images=4000, steps=10, shard_size=2000))
    labels = np.ones((32, 32), np.uint8)
    labels[16:] = 2
    crop = np.random.default_rng(0).integers(256, size=(12, 12, 3), dtype=np.uint8)
    crops = (
        CropBody(tissue="tumor", png=b64encode(encode_png(crop))),
        CropBody(tissue="stroma", regions="toy", region="slide-a_0_0"),
    )
    body = ImageBody(model="toy", steps=4, labels=b64encode(encode_png(labels)), crops=crops)
    picture = client.make_image(body)
    status = client.dataset("bulk")
    assert decode_png(picture).shape == (32, 32, 3)
    assert status.state in {"planning", "running"}
    assert client.make_image(body) == picture
    assert client.cancel_dataset("bulk").state == "cancelled"


def deleted(client: Client, dataset: str) -> bool:
    """Delete a dataset, unless a worker is still at it."""
    try:
        client.delete_dataset(dataset)
    except RefusedError as error:
        if error.problem["status"] != 409:
            raise
        return False
    return True


def test_a_cancelled_dataset_can_be_deleted_and_made_again(client: Client) -> None:
    client.submit_dataset(request("c", images=4000, steps=10, shard_size=2000))
    for status in client.watch_dataset("c"):
        if status.state == "running":
            client.cancel_dataset("c")
    assert client.dataset("c").state == "cancelled"
    with pytest.raises(RefusedError, match="asked for before"):
        client.submit_dataset(request("c"))
    wait_for(lambda: deleted(client, "c"))  # its worker stops at its next report
    client.submit_dataset(request("c"))
    assert [status.state for status in client.watch_dataset("c")][-1] == "done"


def test_the_command_line_reads_alike_over_http(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ("--server", stack.url)
    words = ("synthesize", "--model", "toy", "--dataset", "cli", "--images", "4", "--steps", "2")
    assert htd(monkeypatch, *words, *server) == 2
    assert "set HTD_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HTD_TOKEN", str(stack.token))
    assert htd(monkeypatch, *words, *server) == 0
    assert "synthesize: done dataset cli," in " ".join(capsys.readouterr().err.split())
    assert htd(monkeypatch, *words, "--proportion", "bone=1", *server) == 2
    assert "bone" in capsys.readouterr().err
    assert htd(monkeypatch, "jobs", "list", *server) == 0
    assert "synthesize-" in capsys.readouterr().out


def test_rates_and_quotas_have_an_end(stack: Stack) -> None:
    own = Limits(connect(stack.config.broker_url.get_secret_value()), requests=2)

    def spend(amount: int, limit: int | None = 10, error: Exception | None = None) -> None:
        with own.spending("t", "images", amount, limit):
            if error:
                raise error

    spend(7)
    with pytest.raises(ProblemError, match="quota of tenant 't': 3 of") as refused:
        spend(4)
    assert refused.value.details.status == 429
    with pytest.raises(ValueError, match="refused"):
        spend(3, error=ValueError("refused"))  # it is given back
    spend(3)
    spend(10**9, None)

    def hurry() -> None:
        for _ in range(6):  # of which three are in one window
            own.count_request("a")

    with pytest.raises(ProblemError, match="2 requests within a minute"):
        hurry()


def test_log_ins_are_counted_and_the_oldest_session_ends(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SESSIONS", 2)
    gateway = Gateway(tmp_path, stack.config.broker_url.get_secret_value())
    token, _ = gateway.resources.tokens.create("ann", "local", ("read",))

    def log_in() -> tuple[int, TestClient]:
        ours = {"Origin": "http://testserver"}
        visitor = TestClient(gateway.app, headers=ours, follow_redirects=False)
        return visitor.post("/login", data={"token": token}).status_code, visitor

    visitors = [log_in()[1] for _ in range(3)]
    assert [each.get("/datasets").status_code for each in visitors] == [303, 200, 200]
    gateway.resources.limits.requests = 1
    answers = [log_in()[0] for _ in range(3)]  # of which two are in one window
    assert 429 in answers


def test_a_tenants_job_goes_through_the_queue(stack: Stack, client: Client) -> None:
    admin = {"Authorization": f"Bearer {stack.token}"}
    httpx2.put(f"{stack.url}/v1/tenants/acme", json={}, headers=admin).raise_for_status()
    body = {"name": "t", "scopes": ["admin"], "tenant": "acme"}
    made = httpx2.post(f"{stack.url}/v1/tokens", json=body, headers=admin).json()
    ledger = tenant_ledger(stack.config, "acme")
    publish_toy_model(ledger.store, make_region_set(ledger.store))
    with Client(stack.url, made["token"]) as theirs:
        theirs.submit_dataset(request("theirs"))
        assert [status.state for status in theirs.watch_dataset("theirs")][-1] == "done"
        assert [status.dataset for status in theirs.datasets()] == ["theirs"]
    assert "theirs" not in {status.dataset for status in client.datasets()}
    with pytest.raises(RefusedError, match="no dataset 'theirs'"):
        client.dataset("theirs")
    lost = ledger.submit(request("lost"))  # never queued; the reconciler finds it
    wait_for(lambda: ledger.result(lost) is not None)
    assert ledger.status(lost).state == "done"


def test_large_slides_go_straight_to_s3_in_parts(
    stack: Stack, client: Client, tmp_path: Path
) -> None:
    admin = {"Authorization": f"Bearer {stack.token}"}
    data = np.random.default_rng(0).bytes((70 << 20) + 5)
    with httpx2.Client(base_url=stack.url, headers=admin, timeout=60) as api:
        body = {"file": "large.svs", "bytes": len(data)}
        begun = api.post("/v1/slides/large/uploads", json=body)
        place, missing = begun.headers["Location"], begun.json()["missing"]
        size = begun.json()["upload"]["part_bytes"]
        assert api.post(f"{place}/complete").status_code == 409
        last = missing[-1]
        for wrong in (b"x", b"x" * (last["bytes"] + 1)):  # the size is signed
            assert httpx2.put(last["url"], content=wrong, timeout=60).status_code == 403
        for part in reversed(missing):
            start = (part["number"] - 1) * size
            sent = httpx2.put(part["url"], content=data[start : start + part["bytes"]], timeout=60)
            sent.raise_for_status()
        assert api.get(place).json()["arrived"] == [1, 2]
        assert api.post(f"{place}/complete").status_code == 200
        assert api.get(place).status_code == 404
        store = open_store(config=stack.config)
        assert store.local("slides/large/source/large.svs").read_bytes() == data
        api.delete("/v1/slides/large").raise_for_status()
    path = tmp_path / "large.svs"
    path.write_bytes(data)
    info = client.upload_slide("large", path)
    assert store.local(str(info.source)).read_bytes() == data
    client.delete_slide("large")


def test_an_upload_costs_the_gateway_no_memory(stack: Stack) -> None:
    process = next(each for each in stack.processes if each.name == "gateway")
    before = peak_memory(process.child.pid)

    def body() -> Iterator[bytes]:
        for _ in range(256):
            yield b"x" * (1 << 20)

    headers = {"Authorization": f"Bearer {stack.token}", "Content-Length": str(256 << 20)}
    answer = httpx2.put(
        f"{stack.url}/v1/slides/big/source/big.svs", content=body(), headers=headers, timeout=120
    )
    assert answer.json()["files"] == {"slides/big/source/big.svs": 256 << 20}
    assert peak_memory(process.child.pid) - before < 64 << 10


def peak_memory(pid: int) -> int:
    """Most memory that a process has had, KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def test_the_lines_of_the_docs_work(stack: Stack, tmp_path: Path) -> None:
    """Run every shell block of docs/api.md, with the names of things that are there."""
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[1:]  # the first sets URL and AUTH
    assert len(blocks) == 6
    names = {
        "lung": "toy",
        "slide_1024_2048": "slide-a_0_0",
        ": 1000,": ": 8,",
        '"synthetic": ["d"], "images": 60': '"synthetic": ["shown"], "images": 3',
    }
    labels = np.ones((32, 32), np.uint8)
    labels[16:] = 2
    (tmp_path / "map.png").write_bytes(encode_png(labels))
    (tmp_path / "crop.png").write_bytes(encode_png(np.full((12, 12, 3), 150, np.uint8)))
    (tmp_path / "a.svs").write_bytes(
        write_phantom(tmp_path, "p", 600, 600, PHANTOM_SEED).slide.read_bytes()
    )
    (tmp_path / "a.geojson").write_bytes((tmp_path / "p.geojson").read_bytes())
    (tmp_path / ".curlrc").write_text("fail-with-body\n")
    script = "\n".join(blocks)
    for name, there in names.items():
        script = script.replace(name, there)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {
            "URL": stack.url,
            "AUTH": f"Authorization: Bearer {stack.token}",
            "CURL_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for made in ("sheet.png", "image.png"):
        assert decode_png((tmp_path / made).read_bytes()).ndim == 3
    assert (tmp_path / "d" / "manifest.parquet").is_file()
