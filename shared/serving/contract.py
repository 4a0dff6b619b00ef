"""What passes between the models on a Triton server, and their configurations.

    <model>-<number>-sampler       maps, crops, seeds → images; the loop (Python backend)
    <model>-<number>-denoiser      one step of a batch, each row at its own time
    <model>-<number>-vae_encoder   crops → latents
    <model>-<number>-vae_decoder   latents → images

Every deployment has a number, and models of its own. Versions of one model would share
its config.pbtxt, and so could differ neither in tensors, engine, nor device.

All floating point tensors on the wire are FP32; an engine computes in what it likes.
The same contract holds for a PyTorch engine and for a TensorRT plan.
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
from shared.diffusion.autoencoder import DECODED, TILE, encode_latents, vae_factor
from shared.diffusion.crops import Crop
from shared.diffusion.pipeline import HeteroTissuePipeline

Part = Literal["sampler", "denoiser", "vae_encoder", "vae_decoder"]
PARTS: tuple[Part, ...] = ("vae_encoder", "vae_decoder", "denoiser", "sampler")
"""In the order in which they are loaded: the sampler needs the others."""

REFUSED = "refused: "
"""What the message of an error begins with that the request is to blame for."""

MOST_IMAGES = 256
"""Images of one request at most."""
MOST_BRANCHES = 3
"""Predictions that guidance weighs at most, see `shared.diffusion.guidance`."""
MOST_CROPS = 255
"""Crops of one image at most."""
MOST_ROWS = 64
"""Rows that requests of several users share at most; a single request may bring more."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the contract.

    Attributes:
        name: on the wire.
        kind: Triton's name of its type, such as FP32.
        dims: without the batch; -1 may vary.
    """

    name: str
    kind: str
    dims: tuple[int, ...]


def served_name(model: str, number: int, part: Part) -> str:
    """Triton's name of a part of a deployment of a model."""
    return f"{model}-{number}-{part}"


def deployed_number(name: str, model: str) -> int | None:
    """The number in Triton's name of something, or None if that is no part of `model`."""
    found = re.fullmatch(rf"{re.escape(model)}-(\d+)-({'|'.join(PARTS)})", name)
    return int(found[1]) if found else None


SAMPLER_INPUTS = (
    Tensor("labels", "UINT8", (-1, -1)),
    Tensor("crops", "UINT8", (-1, -1, -1, 3)),  # (most crops, greatest side, same, 3)
    Tensor("crop_labels", "INT32", (-1,)),  # -1: no crop at this place
    Tensor("crop_sides", "INT32", (-1,)),
    Tensor("crop_corners", "INT32", (-1, 2)),  # x, y
    Tensor("seeds", "INT64", (1,)),
)
SAMPLER_OUTPUTS = (Tensor("images", "UINT8", (-1, -1, 3)), Tensor("step", "INT32", (1,)))


def engine_tensors(
    part: Part, pipeline: HeteroTissuePipeline, size: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of a network for images of `size` pixels.

    vae_encoder: crops of any side, in [-1, 1], to normalized latents; vae_decoder: normalized
    latents to pixels; denoiser: see `denoiser_tensors`.
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


def most_rows(part: Part, size: int) -> int:
    """Rows of a batch of a network at most, for images of `size` pixels."""
    if part == "denoiser":
        return MOST_BRANCHES * MOST_IMAGES
    return min(MOST_IMAGES, max(1, DECODED // size**2))


def denoiser_tensors(
    pipeline: HeteroTissuePipeline, size: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of the denoiser for images of `size` pixels.

    Found by encoding two conditions: a dimension in which they differ may vary.
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
    most: int,
    device: str,
    batching: bool,
    decoupled: bool = False,
) -> str:
    """Write a model's config.pbtxt.

    Args:
        name: Triton's name of the model.
        backend: 'python' or 'tensorrt'.
        tensors: its inputs and outputs.
        parameters: told to the model.
        most: rows of a batch at most.
        device: 'cpu' or 'cuda'.
        batching: whether Triton joins the rows of several requests.
        decoupled: whether a request may have several answers.
    """
    kinds = model_config_pb2.DataType
    proto = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=most)
    for field, group in zip((proto.input, proto.output), tensors, strict=True):
        for tensor in group:
            entry = field.add(
                name=tensor.name, data_type=kinds.Value(f"TYPE_{tensor.kind}"), dims=tensor.dims
            )
            if tensor.name == "time":
                entry.reshape.SetInParent()  # (rows, 1) on the wire, (rows,) for the engine
    where = proto.instance_group.add(count=1)
    where.kind = where.KIND_GPU if device == "cuda" else where.KIND_CPU
    if batching:
        proto.dynamic_batching.SetInParent()
    proto.model_transaction_policy.decoupled = decoupled
    for key, value in parameters.items():
        proto.parameters[key].string_value = value
    if device == "cuda":
        proto.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    return str(text_format.MessageToString(proto))


def planned(size: int) -> tuple[Part, ...]:
    """The networks that TensorRT runs for images of `size` pixels, if it runs any.

    Beyond `TILE` the autoencoder works in tiles, which no graph does.
    """
    return ("denoiser",) if size > TILE else ("vae_encoder", "vae_decoder", "denoiser")


def part_configs(
    record: ModelRecord,
    pipeline: HeteroTissuePipeline,
    *,
    number: int,
    engine: str,
    device: str,
    gpu: str = "",
) -> dict[Part, str]:
    """The config.pbtxt of every part of a deployment of a model version.

    Args:
        record, pipeline: of the version.
        number: of the deployment.
        engine: 'pytorch' or 'tensorrt', of the networks that `planned` names.
        device: 'cpu' or 'cuda'.
        gpu: the only type of GPU that may run it; any, if empty.
    """
    shared = {"precision": record.recipe.precision, "version": record.version}
    plans = planned(record.size) if engine == "tensorrt" else ()
    configs: dict[Part, str] = {}
    for part in PARTS:
        name = served_name(record.model, number, part)
        if part == "sampler":
            parameters = shared | {"size": str(record.size), "gpu": gpu}
            configs[part] = config(
                name, "python", (SAMPLER_INPUTS, SAMPLER_OUTPUTS), parameters,
                most=MOST_IMAGES, device=device, batching=False, decoupled=True,
            )  # fmt: skip
        else:
            # Triton would also join what must be alone; the sampler batches steps itself.
            configs[part] = config(
                name, "tensorrt" if part in plans else "python",
                engine_tensors(part, pipeline, record.size), shared,
                most=most_rows(part, record.size), device=device, batching=part not in plans,
            )  # fmt: skip
    return configs
