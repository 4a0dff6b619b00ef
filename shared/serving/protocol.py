"""The models of a deployment on a Triton server: names, tensors, limits and configurations.

    <tenant>.<model>-<number>-sampler       maps, crops, seeds → images; the loop (Python backend)
    <tenant>.<model>-<number>-denoiser      one step of a batch, each row at its own time
    <tenant>.<model>-<number>-vae_encoder   crops → latents
    <tenant>.<model>-<number>-vae_decoder   latents → images

All tenants share a server, so names begin with the tenant's. In this package, `model` is the name
with the tenant, from `served_model`.

Every deployment has a number, and models of its own. Deployments are not Triton versions of one
model, because versions share a config.pbtxt and so the tensors, the engine and the device.

All floating point tensors between the models are FP32; an engine may compute in another type.
The protocol is the same for a PyTorch engine and a TensorRT plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from shared.contracts.models import ModelRecord
from shared.diffusion.autoencoder import GPU_PIXELS, MAX_UNTILED, encode_latents, vae_factor
from shared.diffusion.crops import Crop
from shared.diffusion.pipeline import HeteroTissuePipeline

Part = Literal["sampler", "denoiser", "vae_encoder", "vae_decoder"]
PARTS: tuple[Part, ...] = ("vae_encoder", "vae_decoder", "denoiser", "sampler")
"""All parts in loading order: the sampler needs the others."""

REFUSED = "refused: "
"""Prefix of error messages that mean an invalid request."""

MAX_IMAGES = 256
"""Largest number of images per request."""

MAX_CROPS = 255
"""Largest number of crops per image."""

MAX_ROWS = 64
"""Rows of the denoiser's largest batch; a larger step is split, to bound the memory of a plan."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a served model.

    Attributes:
        name: name in requests and responses.
        kind: Triton's name of the data type, such as FP32.
        dims: shape without the batch dimension; -1 is a size that varies between requests.
        optional: whether a request may lack it.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    optional: bool = False


def served_name(model: str, number: int, part: Part) -> str:
    """Return Triton's name of a part of a deployment."""
    return f"{model}-{number}-{part}"


def deployed_number(name: str, model: str) -> int | None:
    """Return the deployment's number in Triton's name of a part; None for other models."""
    match = re.fullmatch(rf"{re.escape(model)}-(\d+)-({'|'.join(PARTS)})", name)
    return int(match[1]) if match else None


SAMPLER_INPUTS = (
    Tensor("labels", "UINT8", (-1, -1)),
    Tensor("crops", "UINT8", (-1, -1, -1, 3)),  # (crops, side, side, RGB); padded to the largest
    Tensor("crop_labels", "INT32", (-1,)),  # -1: no crop in this slot
    Tensor("crop_sides", "INT32", (-1,)),
    Tensor("crop_corners", "INT32", (-1, 2)),  # x, y in the image, pixels
    Tensor("seeds", "INT64", (1,), optional=True),  # for images
    Tensor("samples", "FP32", (-1, -1, -1), optional=True),  # (C, h, w), for their velocity
)
SAMPLER_OUTPUTS = (
    Tensor("images", "UINT8", (-1, -1, 3)),
    Tensor("velocity", "FP32", (-1, -1, -1)),
    Tensor("step", "INT32", (1,)),
)


def engine_tensors(
    part: Part, pipeline: HeteroTissuePipeline, size: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs of a network for images of `size` pixels.

    The vae_encoder maps crops of any side, in [-1, 1], to normalized latents. The vae_decoder maps
    normalized latents to pixels. The denoiser's tensors are those of `denoiser_tensors`.
    """
    channels, side = int(pipeline.vae.config.latent_channels), size // vae_factor(pipeline.vae)
    if part == "vae_encoder":
        return (
            (Tensor("images", "FP32", (3, -1, -1)),),
            (Tensor("latents", "FP32", (channels, -1, -1)),),
        )
    if part == "vae_decoder":
        return (
            (Tensor("latents", "FP32", (channels, side, side)),),
            (Tensor("images", "UINT8", (size, size, 3)),),
        )
    return denoiser_tensors(pipeline, size)


def max_rows(part: Part, size: int) -> int:
    """Return the largest batch of a network, in rows, for images of `size` pixels."""
    if part == "denoiser":
        return MAX_ROWS
    return min(MAX_IMAGES, max(1, GPU_PIXELS // size**2))


def denoiser_tensors(
    pipeline: HeteroTissuePipeline, size: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs of the denoiser for images of `size` pixels.

    To find the dimensions that vary (-1), it encodes a condition with one crop and one with two.
    """
    side = size // vae_factor(pipeline.vae)
    latent = (int(pipeline.vae.config.latent_channels), side, side)
    few, many = (_encoded(pipeline, size, count) for count in (1, 2))
    condition = [
        Tensor(
            name,
            "FP32",
            tuple(
                one if one == other else -1
                for one, other in zip(few[name].shape[1:], many[name].shape[1:], strict=True)
            ),
        )
        for name in sorted(few)
    ]
    inputs = (Tensor("sample", "FP32", latent), Tensor("time", "FP32", (1,)), *condition)
    return inputs, (Tensor("velocity", "FP32", latent),)


@torch.inference_mode()
def _encoded(pipeline: HeteroTissuePipeline, size: int, crops: int) -> dict[str, torch.Tensor]:
    denoiser = pipeline.denoiser
    first = int(denoiser.config.first)
    pixels = np.zeros((size // 8 * crops, size // 8 * crops, 3), np.uint8)
    given = [Crop(first + number, 0, 0, pixels) for number in range(crops)]
    labels = np.full((1, size, size), first, np.uint8)
    return denoiser.encode_condition(
        denoiser.lay_out(
            labels, [given], [True], [True], lambda images: encode_latents(pipeline.vae, images)
        )
    )


def config(
    name: str,
    backend: str,
    tensors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    parameters: dict[str, str],
    *,
    max_batch: int,
    device: str,
    batching: bool,
    decoupled: bool = False,
) -> str:
    """Write a model's config.pbtxt.

    Args:
        name: Triton's name of the model.
        backend: 'python' or 'tensorrt'.
        tensors: inputs and outputs of the model.
        parameters: strings that the model can read.
        max_batch: largest batch, in rows.
        device: 'auto', 'cpu' or 'cuda'.
        batching: whether Triton joins the rows of several requests.
        decoupled: whether a request may have several responses.
    """
    kinds = model_config_pb2.DataType
    proto = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=max_batch)
    for field, group in zip((proto.input, proto.output), tensors, strict=True):
        for tensor in group:
            entry = field.add(
                name=tensor.name, data_type=kinds.Value(f"TYPE_{tensor.kind}"), dims=tensor.dims
            )
            if tensor.name == "time":
                entry.reshape.SetInParent()  # (rows, 1) on the wire, (rows,) for the engine
            if tensor.optional:
                entry.optional = True
    where = proto.instance_group.add(count=1)
    where.kind = {
        "auto": where.KIND_AUTO, "cpu": where.KIND_CPU, "cuda": where.KIND_GPU
    }[device]  # fmt: skip
    if batching:
        proto.dynamic_batching.SetInParent()
    proto.model_transaction_policy.decoupled = decoupled
    for key, value in parameters.items():
        proto.parameters[key].string_value = value
    if device != "cpu":
        proto.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    return str(text_format.MessageToString(proto))


def planned(size: int) -> tuple[Part, ...]:
    """Return the networks that TensorRT can run for images of `size` pixels.

    Above `MAX_UNTILED` the autoencoder works in overlapping tiles, which a graph cannot do.
    """
    return ("denoiser",) if size > MAX_UNTILED else ("vae_encoder", "vae_decoder", "denoiser")


def part_configs(
    record: ModelRecord,
    pipeline: HeteroTissuePipeline,
    *,
    model: str,
    number: int,
    engine: str,
    device: str,
    gpu: str = "",
    max_tokens: int | None = None,
    rows: int = MAX_ROWS,
) -> dict[Part, str]:
    """Write the config.pbtxt of every part of a deployment.

    Args:
        record, pipeline: the model version.
        model: name of the model, with its tenant.
        number: number of the deployment.
        engine: 'pytorch' or 'tensorrt'; 'tensorrt' runs the networks of `planned`.
        device: 'auto', 'cpu' or 'cuda'.
        gpu: the only type of GPU that can run the deployment; empty if all can.
        max_tokens: limit of `shared.serving.deployments.check_crops`.
        rows: rows of the denoiser's largest batch.
    """
    shared = {"precision": record.recipe.precision, "version": record.version}
    plans = planned(record.size) if engine == "tensorrt" else ()
    configs: dict[Part, str] = {}
    for part in PARTS:
        name = served_name(model, number, part)
        if part == "sampler":
            parameters = shared | {"size": str(record.size), "gpu": gpu, "max_rows": str(rows)}
            if max_tokens is not None:
                parameters["max_tokens"] = str(max_tokens)
            configs[part] = config(
                name, "python", (SAMPLER_INPUTS, SAMPLER_OUTPUTS), parameters,
                max_batch=MAX_IMAGES, device=device, batching=False, decoupled=True,
            )  # fmt: skip
        else:
            # No batching of TensorRT plans: Triton would also join requests that are `alone`.
            configs[part] = config(
                name, "tensorrt" if part in plans else "python",
                engine_tensors(part, pipeline, record.size), shared,
                max_batch=rows if part == "denoiser" else max_rows(part, record.size),
                device=device, batching=part not in plans,
            )  # fmt: skip
    return configs
