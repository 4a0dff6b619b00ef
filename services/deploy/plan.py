"""TensorRT plans: built on the type of GPU that will run them, and cached."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import InputError
from shared.serving.protocol import Tensor
from shared.storage import Store

Profile = tuple[int, int, int]
"""Smallest, optimal and largest size of a dimension (an optimization profile of TensorRT)."""

BEST_ROWS = 32
"""Batch size, in rows, for which TensorRT chooses the fastest kernels."""


@dataclass(frozen=True)
class Built:
    """The TensorRT version and the type of GPU of a plan; the plan runs only with these."""

    tensorrt: str
    gpu: str


def build_plan(
    onnx: Path, inputs: tuple[Tensor, ...], max_batch: int, free: Profile, store: Store
) -> tuple[bytes, Built]:
    """Build the plan of a graph on this machine's GPU, or take it from the cache.

    Args:
        onnx: path of the graph.
        inputs: the inputs of the graph.
        max_batch: largest batch, in rows.
        free: profile of the dimensions of size -1.
        store: holds the cache, whose keys depend on graph, profile, TensorRT and GPU.

    Returns:
        The plan, and the TensorRT version and GPU that it needs.

    Raises:
        InputError: TensorRT or a GPU is missing, or TensorRT refuses the graph.
    """
    trt = load_tensorrt()
    gpu = torch.cuda.get_device_properties(0)
    built = Built(str(trt.__version__), str(gpu.name))
    machine = f"{built.tensorrt}/{built.gpu}/{gpu.major}.{gpu.minor}"
    digest = hashlib.sha256(onnx.read_bytes())
    rows = rows_profile(max_batch)
    digest.update(f"{machine}/{rows}/{free}".encode())
    key = f"triton/plans/{digest.hexdigest()[:32]}.plan"
    if not store.exists(key):
        # Timings are per TensorRT and GPU, because the fastest kernels differ between them.
        timings = f"triton/plans/{hashlib.sha256(machine.encode()).hexdigest()[:32]}.timing"
        store.put(key, build(trt, onnx, inputs, rows, free, store, timings))
    return store.get(key), built


def rows_profile(max_batch: int) -> Profile:
    """Return the profile of batches of 1 to `max_batch` rows."""
    return 1, min(BEST_ROWS, max_batch), max_batch


def build(
    trt: Any,
    onnx: Path,
    inputs: tuple[Tensor, ...],
    rows: Profile,
    free: Profile,
    store: Store,
    cache: str,
) -> bytes:
    """Build the plan of a graph.

    Args:
        trt: the module of TensorRT, or of TensorRT for RTX.
        onnx: path of the graph.
        inputs: the inputs of the graph.
        rows: profile of the batch.
        free: profile of the dimensions of size -1.
        store: holds the timing cache.
        cache: its key.

    Raises:
        InputError: TensorRT refuses the graph, or cannot build it.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise InputError(f"TensorRT {trt.__version__} refuses {onnx.name}: {errors}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in inputs:
        dims = () if tensor.name == "time" else tensor.dims
        shapes = [
            (count, *(varying if n == -1 else n for n in dims))
            for count, varying in zip(rows, free, strict=True)
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    timings = config.create_timing_cache(store.get(cache) if store.exists(cache) else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"TensorRT {trt.__version__} could not build a plan of {onnx.name}")
    store.put(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def load_tensorrt() -> Any:
    """Import TensorRT. Raises `InputError` if it or a GPU is missing."""
    try:
        import tensorrt
    except ImportError as error:
        raise InputError(
            "no TensorRT here: deploy with --engine pytorch, or run the deploy worker in the "
            "image of the Triton server (pip install the same version of tensorrt as the server's)"
        ) from error
    if not torch.cuda.is_available():
        raise InputError(
            "no GPU here: a TensorRT plan is built on the type of GPU that will run it; run the "
            "deploy worker there, or deploy with --engine pytorch"
        )
    return tensorrt
