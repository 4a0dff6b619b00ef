"""TensorRT plans: when they are built, and when the cache has them. TensorRT itself is feigned."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from services.deploy.plan import Built, build_plan
from shared.errors import InputError
from shared.serving.engine import Instance
from shared.serving.protocol import Tensor
from shared.storage import DirectoryStore

INPUTS = (
    Tensor("sample", "FP32", (4, 8, 8)),
    Tensor("time", "FP32", (1,)),
    Tensor("tokens", "FP32", (-1, 32)),
)


def build(graph: Path, store: DirectoryStore) -> tuple[bytes, Built]:
    return build_plan(graph, INPUTS, 64, (2, 10, 40), store)


class FakeTensorRT:
    """As much of TensorRT's interface as building a plan takes; notes what it is asked."""

    __version__ = "11.1.0"
    Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self) -> None:
        self.flags: list[int] = []
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.timings: list[bytes] = []
        self.refuses = False

    def Builder(self, logger: object) -> Any:  # noqa: N802 - TensorRT's name
        profile = SimpleNamespace(
            set_shape=lambda name, *shapes: self.shapes.update({name: shapes})
        )

        def timing_cache(data: bytes) -> object:
            self.timings.append(data)
            return SimpleNamespace(serialize=lambda: b"timed")

        def set_timing_cache(cache: Any, ignore_mismatch: bool) -> None:
            assert not ignore_mismatch
            config.get_timing_cache = lambda: cache

        config = SimpleNamespace(
            add_optimization_profile=lambda given: None,
            create_timing_cache=timing_cache,
            set_timing_cache=set_timing_cache,
        )

        def create_network(flags: int) -> object:
            self.flags.append(flags)
            return object()

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, given: b"plan",
        )

    def OnnxParser(self, network: object, logger: object) -> Any:  # noqa: N802
        return SimpleNamespace(
            parse_from_file=lambda path: not self.refuses,
            num_errors=1,
            get_error=lambda number: SimpleNamespace(desc=lambda: "no such operator"),
        )


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    use(monkeypatch, "NVIDIA L40S")
    return fake


def use(monkeypatch: pytest.MonkeyPatch, gpu: str) -> None:
    found = SimpleNamespace(name=gpu, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)


def test_a_plan_is_built_once_for_a_graph_a_tensorrt_and_a_gpu(
    tensorrt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, graph = DirectoryStore(tmp_path / "store"), tmp_path / "graph.onnx"
    graph.write_bytes(b"one")
    plan, built = build(graph, store)
    assert (plan, built.tensorrt, built.gpu) == (b"plan", "11.1.0", "NVIDIA L40S")
    assert tensorrt.flags == [1 << 1]  # strongly typed
    assert tensorrt.shapes["tokens"] == ((1, 2, 32), (32, 10, 32), (64, 40, 32))
    assert tensorrt.shapes["time"] == ((1,), (32,), (64,))
    build(graph, store)
    assert tensorrt.timings == [b""]  # built once
    graph.write_bytes(b"another")
    build(graph, store)
    use(monkeypatch, "NVIDIA A10")
    build(graph, store)
    # Timings are kept, but not for another GPU.
    assert tensorrt.timings == [b"", b"timed", b""]


def test_a_graph_that_tensorrt_refuses_is_an_error_that_says_why(
    tensorrt: FakeTensorRT, tmp_path: Path
) -> None:
    tensorrt.refuses = True
    (tmp_path / "graph.onnx").write_bytes(b"one")
    with pytest.raises(InputError, match=r"TensorRT 11.1.0 refuses graph.onnx: no such operator"):
        build(tmp_path / "graph.onnx", DirectoryStore(tmp_path / "store"))


def test_without_tensorrt_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no TensorRT here"):
        build(tmp_path / "graph.onnx", DirectoryStore(tmp_path / "store"))


@pytest.mark.parametrize("gpu", ["NVIDIA L40S", "NVIDIA A10"])
def test_a_plan_of_another_gpu_is_refused_by_the_server(
    tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, gpu: str
) -> None:
    use(monkeypatch, gpu)
    arguments = {
        "model_name": "m-1-sampler",
        "model_repository": "/models/m-1-sampler",
        "model_version": "1",
        "model_instance_kind": "GPU",
        "model_instance_device_id": "0",
        "model_config": '{"input": [], "parameters": {"precision": {"string_value": "bf16"}, '
        '"gpu": {"string_value": "NVIDIA L40S"}}}',
    }
    if gpu == "NVIDIA L40S":
        assert Instance(arguments).device == "cuda:0"
    else:
        with pytest.raises(InputError, match=r"for NVIDIA L40S, .* has NVIDIA A10"):
            Instance(arguments)
