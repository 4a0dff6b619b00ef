"""Checkpoints that come with the package, to warm-start from.

`starter` is a small model made on phantom slides; `colon` is `cpu-small`, made on the training
split of EBHI-Seg (Shi et al. 2023, CC BY 4.0; colorectal biopsies, H&E; other, gland): the decoder
in 3,000 steps on windows of 64 px, 1,200 of 128 px and 4,400 that mind the staining, the denoiser
in 8,000 steps of 16 images on a CPU and 1,668 of 64 on a GPU. `colon-student` makes images in four
steps without guidance, with the same autoencoder: its teacher is `colon`'s denoiser after 1,833
steps of 128 more. It was taught on a GPU with map and crops always given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from shared.contracts.models import ModelRef
from shared.contracts.recipe import StudentRecipe
from shared.contracts.train import SHIPPED
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.models import read_model
from shared.storage import ObjectStore


@dataclass(frozen=True)
class Weights:
    """Weights to start from: tensors by name, the VAE's normalization, and the class names."""

    vae: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    normalization: dict[str, Any]
    classes: list[str]


def shipped_path(name: str) -> Path:
    """Where a shipped checkpoint lies."""
    return Path(__file__).parent / f"{name}.safetensors"


def read_weights(store: ObjectStore, reference: str) -> Weights:
    """Read a shipped checkpoint, or a published version: `models/<name>/<version>`.

    Raises:
        InputError: `reference` is neither, or names none that there is.
    """
    return _read_shipped(reference) if reference in SHIPPED else _read_version(store, reference)


def student_of(store: ObjectStore, reference: str) -> StudentRecipe | None:
    """How the denoiser of `reference` was taught to sample in few steps, if it was.

    Raises:
        InputError: as `read_weights`; the weights are not read.
    """
    if reference in SHIPPED:
        with _open_shipped(reference) as file:
            student = _meta(file).get("student")
        return student and StudentRecipe.model_validate(student)
    record = read_model(store, _reference(reference))
    return record.recipe.denoiser.student


def _open_shipped(name: str) -> Any:
    path = shipped_path(name)
    if not path.is_file():
        raise InputError(f"{path} is missing: install the package anew")
    return safe_open(path, framework="pt")


def _meta(file: Any) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(file.metadata()["heterotissue"])
    return meta


def _read_shipped(name: str) -> Weights:
    with _open_shipped(name) as file:
        meta = _meta(file)
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    return Weights(
        vae=_part(tensors, "vae."),
        denoiser=_part(tensors, "denoiser."),
        normalization=meta["normalization"],
        classes=meta["classes"],
    )


def _read_version(store: ObjectStore, reference: str) -> Weights:
    sampler = load_model(store, _reference(reference), "cpu")
    return Weights(
        dict(sampler.pipeline.vae.state_dict()),
        dict(sampler.pipeline.denoiser.state_dict()),
        normalization(sampler.pipeline.vae),
        sampler.record.classes.names,
    )


def _reference(text: str) -> ModelRef:
    """Read `models/<name>/<version>`. Raises `InputError`."""
    parts = text.split("/")
    if len(parts) != 3 or parts[0] != "models":
        raise InputError(
            f"{text!r} is no model: give {', '.join(SHIPPED)} or models/<name>/<version>"
        )
    return ModelRef(parts[1], parts[2])


def normalization(vae: Any) -> dict[str, Any]:
    """What of a VAE's config says how its latents are normalized."""
    names = ("scaling_factor", "shift_factor")
    return {name: vae.config[name] for name in names if name in vae.config}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def start_vae(vae: Any, weights: Weights) -> None:
    """Load the weights into a VAE of the same shape."""
    _load(vae, weights.vae, "the VAE")
    vae.register_to_config(**weights.normalization)


def start_denoiser(denoiser: Denoiser, weights: Weights, classes: list[str]) -> None:
    """Load the weights into a denoiser of the same shape, for any classes."""
    try:
        state = denoiser.adapted(weights.denoiser, weights.classes, classes)
    except KeyError as error:
        raise InputError(
            "the checkpoint to start from has another conditioning than the recipe: use the same, "
            "or no warm start"
        ) from error
    _load(denoiser, state, "the denoiser")


def _load(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint to start from does not fit {what} of the recipe: use its channels, "
            "layers and latent_channels, or no warm start"
        ) from error
