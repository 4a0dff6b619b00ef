"""Export of the networks as ONNX graphs with the tensors of the serving protocol, for TensorRT."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from shared.diffusion.autoencoder import Autoencoder, encode_latents, to_pixels, to_raw, vae_factor
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.serving.protocol import Part, engine_tensors
from shared.serving.protocol import Tensor as Spec

OPSET = 22
"""The first one in which convolutions and normalizations may be bf16."""


class DenoiserGraph(nn.Module):
    """The denoiser as a graph: it takes the protocol's inputs in order, and computes in `dtype`.

    Inputs and outputs are FP32. The time stays FP32 until it is embedded, because bf16 keeps only
    three digits. The graph fixes the type of every operation, because TensorRT builds the engine
    strongly typed.

    Args:
        denoiser: the denoiser, which is copied.
        names: names of the encoded condition's tensors, in the order of the inputs.
        dtype: type in which the network computes.
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


class VaeGraph(nn.Module):
    """The VAE's encoder or decoder as a graph: it computes in `dtype`.

    Inputs and outputs are FP32, but the decoder's output is uint8 pixels.
    """

    def __init__(self, vae: Autoencoder, part: Part, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae).to(dtype)
        self.vae.disable_tiling()
        self.encodes = part == "vae_encoder"
        self.dtype = dtype

    def forward(self, given: Tensor) -> Tensor:
        if self.encodes:
            return encode_latents(self.vae, given.to(self.dtype)).float()
        raw = to_raw(self.vae, given).to(self.dtype)
        return to_pixels(self.vae.decode(raw, return_dict=False)[0])


def example(tensors: tuple[Spec, ...], rows: int, free: int) -> tuple[Tensor, ...]:
    """Draw random inputs with `rows` rows; a dimension of size -1 gets the size `free`."""
    generator = torch.Generator().manual_seed(rows * 1000 + free)
    inputs = []
    for tensor in tensors:
        shape = (rows,) if tensor.name == "time" else (rows, *tensor.dims)
        inputs.append(torch.rand([free if n == -1 else n for n in shape], generator=generator))
    return tuple(inputs)


def make_graph(
    pipeline: HeteroTissuePipeline, part: Part, inputs: tuple[Spec, ...], dtype: torch.dtype
) -> nn.Module:
    """Return the graph of a network, with the inputs and outputs of the serving protocol."""
    if part != "denoiser":
        return VaeGraph(pipeline.vae, part, dtype).eval()
    return DenoiserGraph(pipeline.denoiser, [spec.name for spec in inputs[2:]], dtype).eval()


def export_onnx(
    pipeline: HeteroTissuePipeline,
    part: Part,
    size: int,
    path: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Export a network to an ONNX file, for images of `size` × `size` pixels.

    The numbers of rows and of tokens, and the side of crops, stay dynamic.
    """
    inputs, (output,) = engine_tensors(part, pipeline, size)
    unit = vae_factor(pipeline.vae) if part == "vae_encoder" else 1
    rows, free = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("free", max=65536)
    shapes = tuple(
        {0: rows} | {axis: unit * free for axis, n in enumerate(spec.dims, 1) if n == -1}
        for spec in inputs
    )
    torch.onnx.export(
        make_graph(pipeline, part, inputs, dtype),
        example(inputs, 2, 7 * unit),
        path,
        input_names=[spec.name for spec in inputs],
        output_names=[output.name],
        dynamic_shapes=(*shapes[:2], shapes[2:]) if part == "denoiser" else shapes,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )


def largest_error(pipeline: HeteroTissuePipeline, part: Part, size: int, path: Path) -> float:
    """Compare an ONNX file, run by onnxruntime, with the network in PyTorch.

    Both get the same random inputs, of several shapes.

    Returns:
        The largest absolute difference of the outputs.
    """
    inputs, _ = engine_tensors(part, pipeline, size)
    unit = vae_factor(pipeline.vae) if part == "vae_encoder" else 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = make_graph(pipeline, part, inputs, torch.float32)
    worst = 0.0
    for rows, free in ((1, 5), (3, 12)):
        given = example(inputs, rows, free * unit)
        named = {spec.name: value.numpy() for spec, value in zip(inputs, given, strict=True)}
        (exported,) = session.run(None, named)
        with torch.inference_mode():
            expected = network(*given).numpy()
        worst = max(worst, float(np.abs(exported.astype(float) - expected).max()))
    return worst
