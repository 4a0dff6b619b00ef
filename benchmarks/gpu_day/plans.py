"""TensorRT plans: built here, and run on tensors of PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.deploy.onnx_graph import export_onnx
from services.deploy.plan import build_plan, load_tensorrt
from services.deploy.stage import free_profile
from shared.contracts.models import ModelRecord
from shared.diffusion.autoencoder import vae_factor
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.protocol import Part, engine_tensors, max_rows
from shared.storage import Store

TYPES = {"FP32": torch.float32, "UINT8": torch.uint8}


class PlanEngine:
    """A plan, as a function of the inputs of its graph.

    Args:
        plan: the plan.
        names: names of its inputs, in the order of the call.
        output: name and Triton's data type of its output.

    Attributes:
        memory: bytes that the plan reserves for its activations.
    """

    def __init__(self, plan: bytes, names: list[str], output: tuple[str, str]) -> None:
        trt = load_tensorrt()
        engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
        self._context = engine.create_execution_context()
        self._names, (self._output, kind) = names, output
        self._type = TYPES[kind]
        self.memory = int(engine.device_memory_size_v2)

    def __call__(self, *given: Tensor) -> Tensor:
        kept = [value.contiguous() for value in given]
        for name, value in zip(self._names, kept, strict=True):
            self._context.set_input_shape(name, tuple(value.shape))
            self._context.set_tensor_address(name, value.data_ptr())
        shape = tuple(self._context.get_tensor_shape(self._output))
        answer = torch.empty(shape, dtype=self._type, device="cuda")
        self._context.set_tensor_address(self._output, answer.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT refused to run the plan")
        return answer


def make_plan(
    part: Part, pipeline: HeteroTissuePipeline, record: ModelRecord, folder: Path, store: Store
) -> tuple[PlanEngine, dict[str, Any]]:
    """Export a network as it is served, and build its plan.

    Returns:
        The engine; and seconds of the export and of the building, and bytes.

    Raises:
        InputError: there is no TensorRT or no GPU here, or TensorRT refuses the graph.
    """
    load_tensorrt()
    path = folder / f"{part}.onnx"
    dtype = torch.bfloat16 if record.recipe.precision == "bf16" else torch.float32
    began = time.monotonic()
    export_onnx(pipeline, part, record.size, path, dtype)
    exported = time.monotonic()
    inputs, (output,) = engine_tensors(part, pipeline, record.size)
    free = free_profile(part, record, vae_factor(pipeline.vae))
    plan, built = build_plan(path, inputs, max_rows(part, record.size), free, store)
    engine = PlanEngine(plan, [each.name for each in inputs], (output.name, output.kind))
    return engine, {
        "tensorrt": built.tensorrt,
        "export_seconds": round(exported - began, 1),
        "build_seconds": round(time.monotonic() - exported, 1),
        "plan_bytes": len(plan),
        "activation_bytes": engine.memory,
    }


def as_forward(engine: PlanEngine, names: list[str], most: int) -> Callable[..., Tensor]:
    """Return an engine of the denoiser as a forward pass, in batches of at most `most` rows."""

    def forward(sample: Tensor, time: Tensor, encoded: dict[str, Tensor]) -> Tensor:
        parts = [
            engine(*(value[start : start + most] for value in given))
            for given in [(sample, time, *(encoded[name] for name in names))]
            for start in range(0, len(sample), most)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return forward
