"""The denoiser as an ONNX graph of the serving contract, for TensorRT."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from shared.diffusion.denoiser import Denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.contract import Tensor as Spec
from shared.serving.contract import denoiser_tensors

OPSET = 20


class DenoiserGraph(nn.Module):
    """One denoising step with the contract's inputs in order; FP32 outside, `dtype` inside.

    The time stays FP32 until it is embedded: bf16 keeps three digits of it.
    TensorRT networks are strongly typed, so the types of the graph are those of the engine.
    """

    def __init__(self, denoiser: Denoiser, names: list[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).to(dtype)
        self.names = names
        self.dtype = dtype

    def forward(self, sample: Tensor, time: Tensor, *condition: Tensor) -> Tensor:
        encoded = {n: c.to(self.dtype) for n, c in zip(self.names, condition, strict=True)}
        velocity: Tensor = self.denoiser(sample.to(self.dtype), time, encoded)
        return velocity.float()


def example(tensors: tuple[Spec, ...], rows: int, free: int) -> list[Tensor]:
    """Draw inputs of the contract: `rows` rows, `free` for every dimension that may vary."""
    generator = torch.Generator().manual_seed(rows * 1000 + free)
    made = []
    for tensor in tensors:
        shape = (rows,) if tensor.name == "time" else (rows, *tensor.dims)
        made.append(torch.rand([free if n == -1 else n for n in shape], generator=generator))
    return made


def export_onnx(
    pipeline: HeteroTissuePipeline, size: int, path: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the denoiser for images of `size` pixels as ONNX, any number of rows and tokens."""
    inputs, (output,) = denoiser_tensors(pipeline, size)
    graph = DenoiserGraph(pipeline.denoiser, [spec.name for spec in inputs[2:]], dtype).eval()
    rows, tokens = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("tokens", max=65536)
    shapes = [
        {0: rows} | {axis: tokens for axis, n in enumerate(spec.dims, 1) if n == -1}
        for spec in inputs
    ]
    torch.onnx.export(
        graph,
        tuple(example(inputs, 2, 7)),
        path,
        input_names=[spec.name for spec in inputs],
        output_names=[output.name],
        dynamic_shapes={"sample": shapes[0], "time": shapes[1], "condition": tuple(shapes[2:])},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )


def largest_error(pipeline: HeteroTissuePipeline, size: int, path: Path) -> float:
    """Run a graph with onnxruntime and PyTorch on the same inputs of several shapes.

    Returns:
        The greatest difference of the velocities.
    """
    inputs, _ = denoiser_tensors(pipeline, size)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows, tokens in ((1, 5), (3, 12)):
        given = example(inputs, rows, tokens)
        named = {spec.name: value.numpy() for spec, value in zip(inputs, given, strict=True)}
        (there,) = session.run(None, named)
        condition = {spec.name: v for spec, v in zip(inputs[2:], given[2:], strict=True)}
        with torch.inference_mode():
            here = pipeline.denoiser(given[0], given[1], condition).numpy()
        worst = max(worst, float(np.abs(there - here).max()))
    return worst
