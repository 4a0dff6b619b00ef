"""Loading published models from the object store."""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
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
from shared.models import check_layouts, read_model
from shared.storage import DamagedObjectError, Store, copy_hashed

MAX_PIPELINES = 2
"""Number of pipelines kept in memory; the one used longest ago is dropped first."""

MAX_CONTENTS = 256
"""Number of versions whose content is remembered."""

Content = frozenset[tuple[str, str]]
"""(file, SHA-256) of all files that a pipeline is made of, as they were read."""

Key = tuple[Content, str, str]
"""Key of a pipeline in memory: its content, device, precision."""


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
    """Load a model version, or take it from memory.

    Versions with the same content share a pipeline, whatever their records say of it.

    Raises:
        InputError: the weights are not those of the version's record.
        ObjectNotFoundError: there is no such version.
    """
    record = read_model(store, ref)
    precision = record.recipe.precision
    version = (store.url, ref, frozenset((record.sha256 | record.configurations).items()))
    with _lock:
        content = _contents.get(version)
        pipeline = _pipelines.get((content, device, precision)) if content is not None else None
        if content is None or pipeline is None:
            with tempfile.TemporaryDirectory(prefix="htd-model-") as name:
                content = _contents[version] = _copy(store, ref.prefix, record, Path(name))
                pipeline = _pipelines.get((content, device, precision))
                if pipeline is None:
                    pipeline = _open(Path(name), device, precision)
        key = (content, device, precision)
        _pipelines[key] = pipeline
        _pipelines.move_to_end(key)
        _contents.move_to_end(version)
        for kept, most in ((_pipelines, MAX_PIPELINES), (_contents, MAX_CONTENTS)):
            if len(kept) > most:
                kept.popitem(last=False)
    return LoadedModel(record, pipeline)


_pipelines: OrderedDict[Key, HeteroTissuePipeline] = OrderedDict()
_contents: OrderedDict[tuple[str, ModelRef, Content], Content] = OrderedDict()
"""(store, version, what its record states) → its content, which was as stated."""
_lock = Lock()


def load_layouts(store: Store, record: ModelRecord) -> UNet2DModel:
    """Load the layout model of a model version, on the CPU.

    Raises:
        InputError: the version has none, or its weights are not those of its record.
    """
    check_layouts(record)
    with tempfile.TemporaryDirectory(prefix="htd-layouts-") as name:
        _copy(store, record.ref.prefix, record, Path(name), f"{FOLDER}/")
        disable_progress_bar()
        return read_layouts(Path(name) / FOLDER)


def _copy(store: Store, prefix: str, record: ModelRecord, folder: Path, below: str = "") -> Content:
    """Copy the configurations and weights of a version, and return what was copied.

    Args:
        store: holds the version.
        prefix: prefix of the version's objects.
        record: the version's record, with the hashes of the weights.
        folder: receives the files.
        below: beginning of the names of the files to copy.

    Raises:
        DamagedObjectError: weights or configurations are missing, or others than those of the
            record; or a configuration is damaged.
    """
    known = record.sha256 | record.configurations
    wanted = {name: digest for name, digest in known.items() if name.startswith(below)}
    copied = {}
    for key in store.list(prefix + below):
        name = key.removeprefix(prefix)
        if name in wanted or (name.endswith(".json") and key != record.ref.key):
            source, target = store.local(key), folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copied[name] = copy_hashed(source, target)
            if name.endswith(".json"):
                _check_json(store, key, target)
    if not wanted:
        raise DamagedObjectError(store, record.ref.key, "it names no weights")
    for name, digest in sorted(wanted.items()):
        if copied.get(name) != digest:
            why = "it is not what its record says" if name in copied else "it is missing"
            raise DamagedObjectError(store, prefix + name, why)
    return frozenset(copied.items())


def _check_json(store: Store, key: str, path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedObjectError(store, key, "it is no JSON") from error


def _open(folder: Path, device: str, precision: str) -> HeteroTissuePipeline:
    disable_progress_bar()
    pipeline: HeteroTissuePipeline = HeteroTissuePipeline.from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False
    )
    pipeline.to(device)
    prepare_vae(pipeline.vae, precision)
    prepare_denoiser(pipeline.denoiser, precision)
    return pipeline
