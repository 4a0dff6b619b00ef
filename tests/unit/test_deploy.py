"""Deployment: what is written to Triton's repository, and what the server is told."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import pytest
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from services.deploy import stage as deployment
from services.deploy.plan import Built, Profile
from services.deploy.stage import DeployStage
from shared.contracts.deploy import Deployment, DeployRequest
from shared.contracts.jobs import JobStatus
from shared.contracts.models import ModelRecord
from shared.errors import InputError
from shared.jobs import Ledger, run_job
from shared.queue.tenants import tenant_ledger
from shared.serving.client import LoadError
from shared.serving.deployments import deployments, next_number
from shared.serving.generator import open_generator
from shared.serving.protocol import PARTS, deployed_number
from shared.serving.repository import Repository, add_deployment
from shared.settings import Settings, settings
from shared.storage import DirectoryStore, Store, StoreView
from tests.models import publish_toy_model
from tests.policies import Policed
from tests.region_sets import make_region_set


class FakeServer:
    """A server that notes what it is told."""

    told: list[object]
    refuses = False

    def __init__(self, url: str) -> None:
        pass

    def load(self, model: str, number: int, size: int) -> None:
        self.told.append(("load", model, number))
        if self.refuses:
            raise LoadError("Triton cannot load toy-2-denoiser: the plan is of another GPU")

    def retire(self, model: str, kept: Container[int]) -> None:
        self.told.append(("keep", model, kept))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    monkeypatch.setenv("HTD_TRITON_URL", "triton:8001")
    settings.cache_clear()
    monkeypatch.setattr(deployment, "Server", FakeServer)
    monkeypatch.setattr(FakeServer, "told", [], raising=False)
    made = DirectoryStore(tmp_path)
    publish_toy_model(made, make_region_set(made))
    return made


@pytest.fixture(autouse=True)
def forget_settings() -> object:
    yield
    settings.cache_clear()


def deploy(store: DirectoryStore, number: int, **fields: str) -> JobStatus:
    ledger = Ledger(Policed(store, "deploy"))
    request = DeployRequest.model_validate({"model": "toy", "number": number, **fields})
    return run_job(ledger, DeployStage(), ledger.submit(request), config=Settings(threads=1))


def folders(store: DirectoryStore) -> set[int | None]:
    keys = (key.split("/")[1] for key in store.list("triton/local.toy-"))
    return {deployed_number(name, "local.toy") for name in keys}


def test_every_deployment_has_models_and_configurations_of_its_own(store: DirectoryStore) -> None:
    for number, device in ((1, "cpu"), (2, "cuda"), (3, "cpu")):
        assert deploy(store, number, device=device).state == "done"
    assert [each.number for each in deployments(store, "toy")] == [2, 3]
    assert folders(store) == {2, 3}
    kinds = []
    for number in (2, 3):
        config = model_config_pb2.ModelConfig()
        text_format.Parse(
            store.get(f"triton/local.toy-{number}-denoiser/config.pbtxt").decode(), config
        )
        assert config.name == f"local.toy-{number}-denoiser"
        kinds.append(config.instance_group[0].kind)
    assert kinds == [
        model_config_pb2.ModelInstanceGroup.KIND_GPU,
        config.instance_group[0].KIND_CPU,
    ]
    assert FakeServer.told[-2:] == [("load", "local.toy", 3), ("keep", "local.toy", {2, 3})]


def test_triton_chooses_the_device_unless_the_request_does(store: DirectoryStore) -> None:
    assert deploy(store, 1).state == "done"
    for part in PARTS:
        config = model_config_pb2.ModelConfig()
        text_format.Parse(store.get(f"triton/local.toy-1-{part}/config.pbtxt").decode(), config)
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO


def test_a_plan_for_a_cpu_is_refused() -> None:
    with pytest.raises(ValidationError, match="TensorRT needs a GPU: leave device out"):
        DeployRequest(model="toy", number=1, engine="tensorrt", device="cpu")


def test_deployments_that_end_at_the_same_time_are_both_kept(tmp_path: Path) -> None:
    def entry(number: int) -> Deployment:
        return Deployment(number=number, version=str(number), engine="pytorch", sha256={})

    def add(store: Store, number: int) -> None:
        add_deployment(
            Repository(store, store, "local"),
            entry(number),
            "toy",
            dict.fromkeys(PARTS, ""),
            {p: {} for p in PARTS},
        )

    class Slow(StoreView):
        """Another deployment begins and ends just before a record is put."""

        def put(self, key: str, data: bytes) -> str:
            if key.endswith(".json"):
                add(self.inner, 2)
            return super().put(key, data)

    store = DirectoryStore(tmp_path)
    add(Slow(store), 1)
    assert deployments(store, "toy") == [entry(1), entry(2)]


def test_tenants_have_models_of_their_own_in_the_repository_that_triton_reads(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTD_STORE", str(store.root))
    for key in list(store.list("models/toy/")):
        store.put(f"tenants/acme/{key}", store.get(key))
    deploy(store, 1)
    ours = {key: store.get(key) for key in store.list("triton/")}
    ledger = tenant_ledger(Settings(store=str(store.root)), "acme")
    job = ledger.submit(DeployRequest(model="toy", number=1))
    assert run_job(ledger, DeployStage(), job, config=Settings(threads=1)).state == "done"
    assert [each.number for each in deployments(ledger.store, "toy")] == [1]
    assert FakeServer.told[-2:] == [("load", "acme.toy", 1), ("keep", "acme.toy", {1})]
    assert {key.split("/")[1] for key in store.list("triton/acme.")} == {
        f"acme.toy-1-{part}" for part in PARTS
    }
    assert (
        'name: "acme.toy-1-sampler"' in store.get("triton/acme.toy-1-sampler/config.pbtxt").decode()
    )
    theirs = [key for key in store.list("triton/") if key not in ours]
    assert all(key.startswith("triton/acme.toy-") for key in theirs)
    assert {key: store.get(key) for key in ours} == ours


def test_a_deployment_that_cannot_be_loaded_leaves_the_one_before(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(store, 1)
    before = deployments(store, "toy")
    monkeypatch.setattr(FakeServer, "refuses", True)
    status = deploy(store, 2)
    assert status.state == "failed"
    reason = "another GPU, pytorch. The previous deployment is still served"
    assert reason in status.failed["finish"]
    assert deployments(store, "toy") == before
    assert folders(store) == {1}
    assert next_number(Ledger(store), "toy") == 3


def test_with_tensorrt_every_network_is_a_plan_for_the_gpu_of_the_worker(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def build_plan(
        onnx: Path, inputs: object, most: int, free: Profile, store: DirectoryStore
    ) -> tuple[bytes, Built]:
        asked[onnx.stem] = (most, free)
        return onnx.stem.encode(), Built("11.1.0", "NVIDIA L40S")

    monkeypatch.setattr(deployment, "build_plan", build_plan)
    assert deploy(store, 1, engine="tensorrt").state == "done"
    backends = {}
    for part in PARTS:
        config = model_config_pb2.ModelConfig()
        text_format.Parse(store.get(f"triton/local.toy-1-{part}/config.pbtxt").decode(), config)
        backends[part] = config.backend
        if part != "sampler":
            assert store.get(f"triton/local.toy-1-{part}/1/model.plan") == part.encode()
            assert config.max_batch_size == asked[part][0]
            assert not config.HasField("dynamic_batching")  # it would join what must be alone
    assert config.parameters["gpu"].string_value == "NVIDIA L40S"
    assert backends == {part: "python" if part == "sampler" else "tensorrt" for part in PARTS}
    assert asked["vae_encoder"][1][2] == 32  # a crop may be as large as the image
    (record,) = deployments(store, "toy")
    assert (record.max_tokens, record.factor) == (asked["denoiser"][1][2], 2) == (257, 2)
    assert config.parameters["max_tokens"].string_value == "257"


def copy_version(store: DirectoryStore, version: str) -> None:
    """Make another version of the same weights."""
    for key in list(store.list("models/toy/1/")):
        store.put(key.replace("toy/1/", f"toy/{version}/"), store.get(key))
    record = store.get_json("models/toy/1/model.json")
    store.put_json(f"models/toy/{version}/model.json", {**record, "version": version})


def test_a_number_is_not_given_to_a_second_version(store: DirectoryStore) -> None:
    deploy(store, 1)
    assert deploy(store, 1, device="cuda").state == "done"  # another try
    copy_version(store, "2")
    assert "has a deployment 1 already" in str(deploy(store, 1, version="2").failed)


def test_a_version_that_is_no_longer_served_is_to_be_deployed_again(store: DirectoryStore) -> None:
    deploy(store, 1)
    for number, version in enumerate(("2", "3"), 2):
        copy_version(store, version)
        deploy(store, number, version=version)
    model = store.get_model("models/toy/1/model.json", ModelRecord)
    with pytest.raises(InputError, match="run 'htd deploy --model toy/1'"):
        open_generator(store, model, "cpu")


@pytest.mark.parametrize(
    ("name", "model", "number"),
    [
        ("local.lung-3-sampler", "local.lung", 3),
        ("local.lung-3-vae_decoder", "local.lung", 3),
        ("local.lung-2-3-sampler", "local.lung", None),
        ("local.lung-2-3-sampler", "local.lung-2", 3),
        ("local.lung-sampler", "local.lung", None),
        ("local.lungs-3-sampler", "local.lung", None),
        ("acme.lung-3-sampler", "local.lung", None),
        ("local.acme.lung-3-sampler", "acme.lung", None),
    ],
)
def test_names_say_whose_they_are(name: str, model: str, number: int | None) -> None:
    assert deployed_number(name, model) == number
