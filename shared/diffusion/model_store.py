"""Loading published models from the object store."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from threading import Lock

from diffusers import UNet2DModel
from diffusers.utils.logging import disable_progress_bar

from shared.arrays import UInt8
from shared.contracts.models import ModelRecord, ModelRef
from shared.contracts.sampling import Sampling
from shared.diffusion.crops import Crop
from shared.diffusion.gpu import prepare_denoiser, prepare_vae
from shared.diffusion.layouts import FOLDER, read_layouts
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.errors import InputError
from shared.models import read_model
from shared.storage import Store

MAX_PIPELINES = 2
"""Number of pipelines kept in memory; the one used longest ago is dropped first."""

Key = tuple[frozenset[tuple[str, str]], str, str]
"""Key of a pipeline in memory: (file, SHA-256) of all its weights, device, precision."""


class LoadedModel:
    """A published model in memory, ready to generate images."""

    def __init__(self, record: ModelRecord, pipeline: HeteroTissuePipeline) -> None:
        self.record = record
        self.pipeline = pipeline

    @property
    def device(self) -> str:
        """'cpu' or 'cuda'."""
        return str(self.pipeline.device.type)

    def generate(
        self,
        labels: UInt8,
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        use_map: bool = True,
        use_crops: bool = True,
        callback: Callable[[int], None] | None = None,
    ) -> UInt8:
        """Synthesize images in the recipe's precision; see `HeteroTissuePipeline.__call__`."""
        images: UInt8 = self.pipeline(
            labels,
            crops,
            seeds,
            sampling,
            use_map=use_map,
            use_crops=use_crops,
            precision=self.record.recipe.precision,
            callback=callback,
        )
        return images


def load_model(store: Store, ref: ModelRef, device: str) -> LoadedModel:
    """Load a model version, or take it from memory. Raises `ObjectNotFoundError`."""
    record = read_model(store, ref)
    precision = record.recipe.precision
    key = (frozenset(record.sha256.items()), device, precision)
    with _lock:
        pipeline = _pipelines.get(key)
        if pipeline is None:
            pipeline = _pipelines[key] = _load(store, ref, device, precision)
            if len(_pipelines) > MAX_PIPELINES:
                _pipelines.popitem(last=False)
        _pipelines.move_to_end(key)
    return LoadedModel(record, pipeline)


_pipelines: OrderedDict[Key, HeteroTissuePipeline] = OrderedDict()
_lock = Lock()


def load_layouts(store: Store, record: ModelRecord) -> UNet2DModel:
    """Load the layout model of a model version, on the CPU.

    Raises:
        InputError: the version has none.
    """
    if not record.recipe.layouts.steps:
        raise InputError(
            f"{record.ref} has no layout model, so it cannot sample label maps: train it with "
            "--set recipe.layouts.steps=2000, or take the maps of regions"
        )
    with tempfile.TemporaryDirectory(prefix="htd-layouts-") as name:
        for key in store.list(f"{record.ref.prefix}{FOLDER}/"):
            shutil.copyfile(store.local(key), Path(name) / PurePosixPath(key).name)
        disable_progress_bar()
        return read_layouts(Path(name))


def _load(store: Store, ref: ModelRef, device: str, precision: str) -> HeteroTissuePipeline:
    with tempfile.TemporaryDirectory(prefix="htd-model-") as name:
        folder = Path(name)
        for key in store.list(ref.prefix):
            target = folder / key.removeprefix(ref.prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.local(key), target)
        disable_progress_bar()
        pipeline: HeteroTissuePipeline = HeteroTissuePipeline.from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False
        )
    pipeline.to(device)
    prepare_vae(pipeline.vae, precision)
    prepare_denoiser(pipeline.denoiser, precision)
    return pipeline
