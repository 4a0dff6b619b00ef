"""The stack of docker-compose.yml: what it makes, what it survives, what it may not do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from heterotissue.client import Client
from shared.contracts.deploy import DeployRequest
from shared.contracts.synthesize import DatasetRequest
from shared.storage import DirectoryStore
from tests.containers.compose import free_port, wait_for
from tests.containers.conftest import Running, bring_up
from tests.containers.standins import HERE, base_images, build, docker

pytestmark = pytest.mark.containers

IN_PROCESS = """
from services.synthesize.stage import SynthesizeStage
from shared.contracts.synthesize import DatasetRequest
from shared.jobs import Ledger, run_job
from shared.settings import Settings
from shared.storage import DirectoryStore
from shared.computing import prepare
config = Settings()
prepare(config.threads)
ledger = Ledger(DirectoryStore("/work"))
request = DatasetRequest.model_validate_json('''REQUEST''')
assert run_job(ledger, SynthesizeStage(), ledger.submit(request), config=config).state == "done"
"""


OTHER_S3 = "heterotissue-test/other-s3"


def request(dataset: str, images: int, steps: int = 2) -> DatasetRequest:
    return DatasetRequest(
        dataset=dataset, model="toy", images=images, steps=steps, shard_size=8, batch_size=4
    )


def made_in_process(running: Running, asked: DatasetRequest, folder: Path) -> DirectoryStore:
    """What the same request gives in one process of the same image."""
    shutil.copytree(running.model.root, folder)
    running.command("synthesize", IN_PROCESS.replace("REQUEST", asked.model_dump_json()), folder)
    return DirectoryStore(folder)


def assert_same_bytes(running: Running, expected: DirectoryStore, dataset: str) -> None:
    keys = list(expected.list(f"datasets/{dataset}/"))
    assert any(key.endswith(".tar") for key in keys)
    submission = f"datasets/{dataset}/submission.json"  # the gateway's own
    assert {*keys, submission} == set(running.store.list(f"datasets/{dataset}/"))
    for key in keys:
        assert running.store.get(key) == expected.get(key), key


def test_only_images_that_need_it_hold_torch(images: dict[str, str]) -> None:
    for name, size in sorted(images.items()):
        print(f"{name:40} {int(size) / 1e6:8.0f} MB")
        found = subprocess.run(
            ["docker", "run", "--rm", "--network", "none", name, "python3", "-c", "import torch"],
            capture_output=True,
        )
        assert (found.returncode == 0) == (
            not name.startswith(("heterotissue/gateway", "heterotissue/ingest"))
        ), name


def test_a_dataset_over_http_has_the_bytes_of_one_in_process(
    running: Running, tmp_path: Path
) -> None:
    asked = request("whole", 24)
    with Client(running.url, running.token) as client:
        client.submit_dataset(asked)
        assert [*client.watch_dataset("whole")][-1].state == "done"
        client.download_dataset("whole", tmp_path / "downloaded")
    expected = made_in_process(running, asked, tmp_path / "expected")
    assert_same_bytes(running, expected, "whole")
    tars = {path.name: path.read_bytes() for path in (tmp_path / "downloaded").rglob("*.tar")}
    assert len(tars) == 3
    for name, data in tars.items():
        assert data == expected.get(f"datasets/whole/shards/{name}")


def test_killed_containers_and_a_wiped_redis_cost_time_and_no_byte(
    running: Running, tmp_path: Path
) -> None:
    asked = request("killed", 160, steps=5)
    containers = running.compose.containers()
    with Client(running.url, running.token) as client:
        job = client.submit_dataset(asked).job

        def shards() -> int:
            return len(list(running.store.list(f"jobs/{job}/done/")))

        wait_for(lambda: shards() > 1, 120, "the first shards")
        for service in ("synthesize", "gateway", "reconciler"):
            docker("kill", containers[service])
        docker("exec", containers["redis"], "sh", "-c", "rm -rf /data/*")
        docker("kill", containers["redis"])
        assert shards() < 20, "nothing was left to do: the job is too small for this test"
        for service in ("redis", "synthesize", "reconciler", "gateway"):
            docker("start", containers[service])
        before = shards()
        wait_for(lambda: shards() > before + 1, 180, "work to go on")
        docker("pause", containers["s3"])
        ready = ["python", "-m", "shared.queue.health", "http://127.0.0.1:8000/readyz"]
        asked_now = ["docker", "exec", containers["gateway"], *ready]
        assert subprocess.run(asked_now, capture_output=True).returncode == 1
        docker("unpause", containers["s3"])
        wait_for(lambda: running.compose.healthy(), 180, "health")
        wait_for(lambda: client.job(job).state not in {"planning", "running"}, 300, "the end")
        assert client.job(job).state == "done", client.job(job).failed
    assert_same_bytes(running, made_in_process(running, asked, tmp_path / "expected"), "killed")


def test_a_worker_that_is_stopped_lets_its_shard_end(running: Running) -> None:
    worker = running.compose.containers()["synthesize"]
    with Client(running.url, running.token) as client:
        job = client.submit_dataset(request("stopped", 64, steps=10)).job
        wait_for(lambda: bool([*running.store.list(f"jobs/{job}/done/")]), 120, "a first shard")
        docker("stop", "--time", "90", worker)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", worker) == "0"
        docker("start", worker)
        wait_for(lambda: client.job(job).state == "done", 180, "the job's end")
    attempts = {
        key: running.store.get_json(key) for key in running.store.list(f"jobs/{job}/attempts/")
    }
    assert all(each == {"starts": 1, "errors": []} for each in attempts.values()), attempts


def test_containers_have_no_rights_that_they_do_not_need(running: Running) -> None:
    containers = running.compose.containers()
    for service, identity in containers.items():
        state = json.loads(docker("inspect", identity))[0]
        assert state["HostConfig"]["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in state["HostConfig"]["SecurityOpt"], service
        assert state["HostConfig"]["Memory"] > 0, service
        if service in {"s3", "s3-setup"}:
            continue
        assert state["HostConfig"]["ReadonlyRootfs"], service
        assert docker("exec", identity, "id", "-u") != "0", service
        environment = "\n".join(state["Config"]["Env"])
        for secret in (running.compose.folder / "secrets").glob("*/*"):
            assert secret.read_text() not in environment, (service, secret.name)


def test_triton_serves_what_was_deployed(
    images: dict[str, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    compose = bring_up(tmp_path, "cpu,triton", HTD_TRITON_URL="triton:8001")
    try:
        served = Running(compose, tmp_path_factory.mktemp("served"))
        with Client(served.url, served.token) as client:
            job = client.submit(DeployRequest(model="toy", version="1", number=1)).job
            wait_for(lambda: client.job(job).state not in {"planning", "running"}, 240, "deploy")
            assert client.job(job).state == "done", client.job(job).failed
            client.submit_dataset(request("served", 16))
            last = [*client.watch_dataset("served")][-1]
            assert last.state == "done", last
            assert client.job(job).result == {"model": "toy/1", "number": 1, "loaded": True}
        figures = "from urllib.request import urlopen as get;"
        figures += "print(get('http://127.0.0.1:8002/metrics').read().decode())"
        shown = docker("exec", compose.containers()["triton"], "python3", "-c", figures)
        assert 'nv_inference_request_success{model="local.toy-1-sampler"' in shown
    finally:
        compose.down()


def test_another_s3_server_takes_the_place_of_the_one_in_the_compose_file(
    images: dict[str, str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    build(OTHER_S3, HERE / "other_s3", {"PYTHON_IMAGE": base_images()["python"]})
    port = str(free_port())
    server = docker("run", "--detach", "--rm", "--publish", f"{port}:5000", OTHER_S3)
    host = docker("inspect", "--format", "{{.NetworkSettings.Gateway}}", server)
    endpoint = f"http://{host}:{port}"
    compose = bring_up(
        tmp_path,
        "cpu",
        HTD_S3_ENDPOINT=endpoint,
        HTD_S3_PUBLIC_ENDPOINT=endpoint,
        files=("docker-compose.yml", "docker-compose.external-s3.yml"),
    )
    try:
        other = Running(compose, tmp_path_factory.mktemp("other"))
        asked = request("elsewhere", 16)
        with Client(other.url, other.token) as client:
            client.submit_dataset(asked)
            assert [*client.watch_dataset("elsewhere")][-1].state == "done"
        expected = made_in_process(other, asked, tmp_path / "expected")
        assert_same_bytes(other, expected, "elsewhere")
    finally:
        compose.down()
        docker("kill", server)
