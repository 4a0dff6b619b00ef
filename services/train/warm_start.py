"""Warm starts: from a published version, or from one of the checkpoints in this package.

- `starter`: a small model, trained on phantom slides.
- `colon`: trained by the recipe `cpu-small` on the training split of EBHI-Seg (Shi et al. 2023,
  CC BY 4.0; colorectal biopsies, H&E; classes other and gland). The decoder had 3,000 steps on
  windows of 64 px, 1,200 of 128 px, and 4,400 with the staining loss; the denoiser had 8,000
  steps of 16 images on a CPU and 1,668 of 64 images on a GPU.
- `colon-student`: makes images in four steps without guidance, with the same autoencoder. Its
  teacher is `colon`'s denoiser after 1,833 further steps of 128 images. It was trained on a GPU,
  and no map or crops were dropped.

A checkpoint without an autoencoder has that of the recipe `embedded`, which the package holds once.
One that was trained further from another one may be kept as the difference from it (`differences`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from services.train.differences import restored
from shared.contracts.models import ModelRef
from shared.contracts.recipe import StudentRecipe
from shared.contracts.train import PACKAGED, Origin
from shared.diffusion.autoencoder import EMBEDDED, read_vae
from shared.diffusion.denoiser import Denoiser
from shared.diffusion.model_store import load_model
from shared.errors import InputError
from shared.models import read_model
from shared.storage import Store


@dataclass(frozen=True)
class Weights:
    """Weights to start from: tensors by name, the VAE's normalization, and the class names.

    `unlearnt` are those of the classes that these weights were not trained on either; `head_width`
    is that of the denoiser's recipe.
    """

    vae: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    normalization: dict[str, Any]
    classes: list[str]
    unlearnt: tuple[str, ...] = ()
    head_width: int = 32


def packaged_path(name: str) -> Path:
    """Return the path of a checkpoint in this package."""
    return Path(__file__).parent / f"{name}.safetensors"


def read_weights(store: Store, reference: str) -> Weights:
    """Read the weights of a packaged checkpoint or a published version.

    Args:
        store: holds the published versions.
        reference: name of a packaged checkpoint, or models/<name>/<version>.

    Raises:
        InputError: `reference` is neither, or the version does not exist.
    """
    return _read_packaged(reference) if reference in PACKAGED else _read_version(store, reference)


def origin_of(store: Store, reference: str) -> Origin:
    """Say how a checkpoint was trained. Arguments and errors are those of `read_weights`."""
    if reference in PACKAGED:
        return PACKAGED[reference]
    record = read_model(store, _reference(reference))
    return Origin(record.recipe.name, record.size, record.mpp)


def student_of(store: Store, reference: str) -> StudentRecipe | None:
    """Return the student's recipe of a checkpoint or version; None if it is not a student.

    Only the record or the metadata is read, not the weights. Arguments and errors are those of
    `read_weights`.
    """
    if reference in PACKAGED:
        with _open_packaged(reference) as file:
            student = _meta(file).get("student")
        return student and StudentRecipe.model_validate(student)
    record = read_model(store, _reference(reference))
    return record.recipe.denoiser.student


def _open_packaged(name: str) -> Any:
    path = packaged_path(name)
    if not path.is_file():
        raise InputError(f"{path} is missing: install the package again")
    return safe_open(path, framework="pt")


def _meta(file: Any) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(file.metadata()["heterotissue"])
    return meta


def packaged_tensors(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and the tensors, float32, that a checkpoint in this package holds itself.

    Raises:
        InputError: the file is missing.
    """
    with _open_packaged(name) as file:
        meta = _meta(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if base := meta.get("difference_from"):
        return meta, restored(tensors, packaged_tensors(base)[1])
    return meta, {name: value.float() for name, value in tensors.items()}


def _read_packaged(name: str) -> Weights:
    meta, tensors = packaged_tensors(name)
    return Weights(
        vae=_part(tensors, "vae.") or embedded_vae(),
        denoiser=_part(tensors, "denoiser."),
        normalization=meta["normalization"],
        classes=meta["classes"],
        head_width=meta.get("head_width", 32),
    )


def embedded_vae() -> dict[str, Tensor]:
    """Return the weights of the autoencoder in this package, by name, float32."""
    return dict(read_vae(EMBEDDED).state_dict())


def _read_version(store: Store, reference: str) -> Weights:
    loaded = load_model(store, _reference(reference), "cpu")
    return Weights(
        dict(loaded.pipeline.vae.state_dict()),
        dict(loaded.pipeline.denoiser.state_dict()),
        normalization(loaded.pipeline.vae),
        loaded.record.classes.names,
        loaded.record.unlearnt,
        loaded.record.recipe.denoiser.head_width,
    )


def _reference(text: str) -> ModelRef:
    """Parse `models/<name>/<version>`. Raises `InputError`."""
    ref = ModelRef.parse(text)
    if "/" not in text or "/" in ref.version:
        raise InputError(
            f"{text!r} is no model: give {', '.join(PACKAGED)} or models/<name>/<version>"
        )
    return ref


def normalization(vae: Any) -> dict[str, Any]:
    """Return the entries of a VAE's config that normalize its latents."""
    names = ("scaling_factor", "shift_factor")
    return {name: vae.config[name] for name in names if name in vae.config}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def start_vae(vae: Any, weights: Weights) -> None:
    """Load the weights into a VAE. Raises `InputError` if its layers have other shapes."""
    _load(vae, weights.vae, "the VAE")
    vae.register_to_config(**weights.normalization)


def start_denoiser(denoiser: Denoiser, weights: Weights, classes: list[str]) -> None:
    """Load the weights of a warm start into a denoiser with the class names `classes`.

    They may differ from the classes that the weights were trained with: `Denoiser.adapted` carries
    the weights over by name.

    Raises:
        InputError: the weights are for another conditioning, or for other layers.
    """
    width = int(denoiser.config.get("head_width", weights.head_width))
    if width != weights.head_width:  # whose layers have the same shapes
        raise InputError(
            f"the checkpoint to start from has attention heads of {weights.head_width} channels, "
            f"the recipe heads of {width}: set recipe.denoiser.head_width={weights.head_width}"
        )
    try:
        state = denoiser.adapted(weights.denoiser, weights.classes, classes)
    except KeyError as error:
        raise InputError(
            "the checkpoint to start from has another conditioning than the recipe"
        ) from error
    _load(denoiser, state, "the denoiser")


def _load(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint to start from does not fit {what} of the recipe"
        ) from error
