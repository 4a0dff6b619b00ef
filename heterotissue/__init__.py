"""HeteroTissue: make annotated synthetic histopathology images from your own slides.

    from heterotissue import IngestRequest, find_slides, open_store, run, slide_sources

    store = open_store("out/store")
    sources = slide_sources(store, find_slides([Path("slides")]))
    run(IngestRequest(cohort="lung", slides=sources.slides), store)

Each public name is imported at its first use, so that `import heterotissue` is fast and needs no
torch. docs/python.md describes all public names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterotissue.client import Client, RefusedError, ServerError
    from heterotissue.dataset import SyntheticDataset, open_dataset
    from heterotissue.recipes import load_recipe, recipe_names
    from heterotissue.running import run
    from heterotissue.sources import find_slides, slide_sources, tile_table
    from shared.contracts.base import Classes, SplitFractions
    from shared.contracts.cluster import ClusterRequest
    from shared.contracts.deploy import DeployRequest
    from shared.contracts.embed import EmbedRequest
    from shared.contracts.evaluate import EvaluateRequest
    from shared.contracts.image import ImageRequest
    from shared.contracts.ingest import IngestRequest, PatchGrid
    from shared.contracts.jobs import JobStatus
    from shared.contracts.models import ModelRef
    from shared.contracts.recipe import Recipe
    from shared.contracts.regions import RegionRule
    from shared.contracts.synthesize import CropSource, DatasetRequest, MapSource, Provenance
    from shared.contracts.train import TrainRequest
    from shared.datasets.samples import Sample
    from shared.diffusion.crops import Crop
    from shared.diffusion.pipeline import HeteroTissuePipeline
    from shared.errors import HeteroTissueError, InputError, JobError
    from shared.storage import Store, open_store

_MODULES = {
    "heterotissue.client": ("Client", "RefusedError", "ServerError"),
    "heterotissue.dataset": ("SyntheticDataset", "open_dataset"),
    "heterotissue.recipes": ("load_recipe", "recipe_names"),
    "heterotissue.running": ("run",),
    "heterotissue.sources": ("find_slides", "slide_sources", "tile_table"),
    "shared.contracts.base": ("Classes", "SplitFractions"),
    "shared.contracts.cluster": ("ClusterRequest",),
    "shared.contracts.deploy": ("DeployRequest",),
    "shared.contracts.embed": ("EmbedRequest",),
    "shared.contracts.evaluate": ("EvaluateRequest",),
    "shared.contracts.image": ("ImageRequest",),
    "shared.contracts.ingest": ("IngestRequest", "PatchGrid"),
    "shared.contracts.jobs": ("JobStatus",),
    "shared.contracts.models": ("ModelRef",),
    "shared.contracts.recipe": ("Recipe",),
    "shared.contracts.regions": ("RegionRule",),
    "shared.contracts.synthesize": ("CropSource", "DatasetRequest", "MapSource", "Provenance"),
    "shared.contracts.train": ("TrainRequest",),
    "shared.datasets.samples": ("Sample",),
    "shared.diffusion.crops": ("Crop",),
    "shared.diffusion.pipeline": ("HeteroTissuePipeline",),
    "shared.errors": ("HeteroTissueError", "InputError", "JobError"),
    "shared.storage": ("Store", "open_store"),
}
"""Module → its public names. The `TYPE_CHECKING` block repeats them for type checkers."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Classes",
    "Client",
    "ClusterRequest",
    "Crop",
    "CropSource",
    "DatasetRequest",
    "DeployRequest",
    "EmbedRequest",
    "EvaluateRequest",
    "HeteroTissueError",
    "HeteroTissuePipeline",
    "ImageRequest",
    "IngestRequest",
    "InputError",
    "JobError",
    "JobStatus",
    "MapSource",
    "ModelRef",
    "PatchGrid",
    "Provenance",
    "Recipe",
    "RefusedError",
    "RegionRule",
    "Sample",
    "ServerError",
    "SplitFractions",
    "Store",
    "SyntheticDataset",
    "TrainRequest",
    "find_slides",
    "load_recipe",
    "open_dataset",
    "open_store",
    "recipe_names",
    "run",
    "slide_sources",
    "tile_table",
]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
