"""The classes of published models, under the names that `model_index.json` uses.

>>> from heterotissue.models import HeteroTissuePipeline

Each class is imported at its first use, so that importing this module needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.contracts.sampling import Sampling
    from shared.diffusion.concat import ConcatDenoiser
    from shared.diffusion.crops import Crop
    from shared.diffusion.embedding import EmbeddingDenoiser
    from shared.diffusion.pipeline import HeteroTissuePipeline
    from shared.diffusion.regional import RegionalDenoiser

__all__ = [
    "ConcatDenoiser",
    "Crop",
    "EmbeddingDenoiser",
    "HeteroTissuePipeline",
    "RegionalDenoiser",
    "Sampling",
]

_MODULES = {
    "ConcatDenoiser": "shared.diffusion.concat",
    "Crop": "shared.diffusion.crops",
    "EmbeddingDenoiser": "shared.diffusion.embedding",
    "HeteroTissuePipeline": "shared.diffusion.pipeline",
    "RegionalDenoiser": "shared.diffusion.regional",
    "Sampling": "shared.contracts.sampling",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
