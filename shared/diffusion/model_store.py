"""Loading published models from the object store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils.logging import disable_progress_bar
from numpy.typing import NDArray

from shared.contracts.models import ModelRecord, ModelRef
from shared.diffusion.crops import Crop
from shared.diffusion.gpu import prepare_denoiser, prepare_vae
from shared.diffusion.pipeline import HeteroTissuePipeline
from shared.models import read_model
from shared.storage import ObjectStore


class Sampler:
    """A published model, ready to generate."""

    def __init__(self, record: ModelRecord, pipeline: HeteroTissuePipeline) -> None:
        self.record = record
        self.pipeline = pipeline

    def generate(
        self,
        labels: NDArray[np.uint8],
        crops: Sequence[Sequence[Crop]],
        seeds: Sequence[int],
        **options: Any,
    ) -> NDArray[np.uint8]:
        """Synthesize images in the precision of the training; see `HeteroTissuePipeline`."""
        precision = self.record.recipe.precision
        images: NDArray[np.uint8] = self.pipeline(
            labels, crops, seeds, precision=precision, **options
        )
        return images


def load_model(store: ObjectStore, ref: ModelRef, device: str) -> Sampler:
    """Load a model version. Raises `ObjectNotFoundError` if it is not in the store."""
    record = read_model(store, ref)
    key = tuple(sorted(record.sha256.items()))
    source = _Source(store, ref.prefix)
    return Sampler(record, _load(source, key, device, record.recipe.precision))


class _Source:
    """A store and prefix that hash alike, so that weights alone decide what is cached."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.store = store
        self.prefix = prefix

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source)


@lru_cache(maxsize=2)
def _load(
    source: _Source, weights: tuple[tuple[str, str], ...], device: str, precision: str
) -> HeteroTissuePipeline:
    with tempfile.TemporaryDirectory(prefix="htd-model-") as name:
        folder = Path(name)
        for key in source.store.list(source.prefix):
            target = folder / key.removeprefix(source.prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.store.local(key), target)
        disable_progress_bar()
        pipeline: HeteroTissuePipeline = HeteroTissuePipeline.from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False
        )
    pipeline.to(device)
    prepare_vae(pipeline.vae, precision)
    prepare_denoiser(pipeline.denoiser, precision)
    return pipeline
