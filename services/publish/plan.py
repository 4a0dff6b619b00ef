"""TensorRT plans: built on the GPU that will run them, and kept by what they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from shared.errors import InputError
from shared.serving.contract import Tensor
from shared.storage import ObjectStore

ROWS = (1, 16, 768)
"""Rows of the optimization profile: least, best, most."""
TOKENS = (2, 128, 4096)
"""The same of a dimension that may vary."""


def build_plan(onnx: Path, inputs: tuple[Tensor, ...], store: ObjectStore) -> bytes:
    """Build the plan of a graph on this machine's GPU, or take it from the cache.

    Raises:
        InputError: TensorRT or a GPU is missing, or the graph is refused.
    """
    trt = _tensorrt()
    gpu = torch.cuda.get_device_properties(0)
    digest = hashlib.sha256(onnx.read_bytes())
    digest.update(f"{trt.__version__}/{gpu.name}/{gpu.major}.{gpu.minor}/{ROWS}/{TOKENS}".encode())
    key = f"triton/plans/{digest.hexdigest()[:32]}.plan"
    if not store.exists(key):
        store.put(key, _build(trt, onnx, inputs, store, f"triton/plans/{trt.__version__}.timing"))
    return store.get(key)


def _build(
    trt: Any, onnx: Path, inputs: tuple[Tensor, ...], store: ObjectStore, cache: str
) -> bytes:
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise InputError(f"TensorRT {trt.__version__} refuses the denoiser's graph: {errors}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in inputs:
        dims = () if tensor.name == "time" else tensor.dims
        shapes = [
            (rows, *(tokens if n == -1 else n for n in dims))
            for rows, tokens in zip(ROWS, TOKENS, strict=True)
        ]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    timings = config.create_timing_cache(store.get(cache) if store.exists(cache) else b"")
    config.set_timing_cache(timings, ignore_mismatch=True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"TensorRT {trt.__version__} could not build the denoiser's plan")
    store.put(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise InputError(
            "no TensorRT here: publish with --engine pytorch, or run the publish worker in the "
            "image of the Triton server (pip install the tensorrt of the server's very version)"
        ) from error
    if not torch.cuda.is_available():
        raise InputError(
            "no GPU here: a TensorRT plan is built on the type of GPU that will run it; run the "
            "publish worker there, or publish with --engine pytorch"
        )
    return tensorrt
