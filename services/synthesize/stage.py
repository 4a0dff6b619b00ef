"""The synthesize stage: choose the label maps, generate the shards, write the dataset's record."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from diffusers import UNet2DModel

from services.synthesize.card import croissant, dataset_card
from services.synthesize.compose import Composer, Composition
from services.synthesize.gate import Gate, prepare
from services.synthesize.generate import generate_batches, open_generate
from services.synthesize.manifest import put_rows, write_manifest
from shared.contracts.models import ModelRecord
from shared.contracts.synthesize import (
    SLIDES,
    DatasetRecord,
    DatasetRequest,
    dataset_key,
)
from shared.datasets.exports import (
    classes_json,
    coco_bytes,
    coco_info,
    sample_files,
    write_coco,
)
from shared.datasets.map_choice import plan_maps
from shared.datasets.preview import PREVIEW_SAMPLES, preview_png
from shared.datasets.pseudonyms import dataset_pseudonyms, reveal, source_names, write_sources
from shared.datasets.region_bank import RegionBank, open_banks
from shared.datasets.samples import Sample, draw_crops, read_shard, recut_crops
from shared.diffusion.model_store import load_layouts
from shared.errors import JobError
from shared.jobs import Context, Plan, Shard, Stage
from shared.models import read_model, weights_origin
from shared.storage import Store, check_room, sha256
from shared.storage.formats import pack_tar, table_bytes

BYTES_PER_PIXEL = 1.2
"""Bytes of an image and its label map per pixel, as PNG; tissue takes 1.2 to 2."""

IMAGES_PER_MAP = 8
"""Images for each distinct label map from which on a result warns: a map has 8 symmetries."""

CHOICE_ROWS = 65536
"""Rows per row group of `choices.parquet`, so that a shard reads few rows of other shards."""


class SynthesizeStage(Stage[DatasetRequest]):
    """Makes datasets of synthetic images."""

    name: ClassVar[str] = "synthesize"
    request = DatasetRequest

    def plan(self, request: DatasetRequest, context: Context) -> Plan:
        model = _model(context.store, request)
        _layouts(context.store, request, model)  # raises if the model cannot sample maps
        request.sampling(model)  # raises if the model does not allow these settings
        _check_room(context.store, request, model)
        maps, crops = open_banks(context.store, request, model)
        chosen = plan_maps(request, model, maps, crops)
        keys = pa.DictionaryArray.from_arrays(pa.array(chosen), pa.array(maps.keys))
        table = table_bytes(pa.table({"region": keys}), row_group_size=CHOICE_ROWS)
        context.store.put(dataset_key(request.dataset, "choices.parquet"), table)
        write_sources(context.store, request)
        prepare(request, model, context)
        return Plan(phases=(_shards(request),))

    def run(self, request: DatasetRequest, shard: Shard, context: Context) -> dict[str, Any]:
        store = context.store
        number, start, stop = (int(str(shard.args[name])) for name in ("number", "start", "stop"))
        model = _model(store, request)
        generate, size, at_a_time = open_generate(context, request, model)
        maps, crops = open_banks(store, request, model)
        composer = Composer(
            request,
            model,
            maps,
            crops,
            dataset_pseudonyms(store, request),
            _layouts(store, request, model),
        )
        chosen = [maps.numbers[key] for key in _choices(store, request.dataset, start, stop)]

        def batches() -> Iterator[list[Composition]]:
            for first in range(start, stop, size):
                indices = range(first, min(first + size, stop))
                yield [composer.compose(index, chosen[index - start]) for index in indices]

        samples: list[Sample] = []
        members: list[tuple[str, bytes]] = []
        context.progress(0, stop - start, "images")
        refused = 0
        gate = Gate(request, context)
        for part in generate_batches(generate, composer, gate, batches(), at_a_time):
            refused += part.refused
            samples += part.samples
            members += part.members
            context.progress(len(samples), stop - start, "images")
        counts = [np.bincount(s.labels.ravel(), minlength=len(model.classes)) for s in samples]
        key = _shard_key(request.dataset, number)
        tar = pack_tar(members)
        store.put(key, tar)
        put_rows(store, key, samples, counts)
        for kind in request.exports:
            for sample in samples:
                for name, data in sample_files(sample, model.classes, kind):
                    store.put(dataset_key(request.dataset, _export(kind, name)), data)
        if "coco" in request.exports:
            store.put(_coco_key(request.dataset, number), coco_bytes(samples, model.classes))
        return {
            "number": number,
            "images": len(samples),
            "refused": refused,
            "missing": stop - start - len(samples),
            "pixels": np.sum(counts, 0).tolist() if counts else [0] * len(model.classes),
            "sha256": sha256(tar),
        }

    def finish(
        self, request: DatasetRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store, model = context.store, _model(context.store, request)
        sums: Counter[str] = Counter()
        counts, digests = np.zeros(len(model.classes), np.int64), dict[int, str]()
        for part in done.values():
            counts += np.array(part["pixels"])
            sums.update({name: int(part.get(name, 0)) for name in ("images", "refused", "missing")})
            if part["images"]:
                digests[int(part["number"])] = str(part["sha256"])
        numbers = sorted(digests)
        if not numbers:
            raise JobError(
                f"dataset {request.dataset!r}: no image was made, or all copied their crops or "
                "were too near to training regions; look at the failed shards, raise max_copied, "
                "or lower min_distance"
            )
        shards = tuple(_shard_key(request.dataset, number) for number in numbers)
        _drop_stale(store, request, set(numbers))
        manifest, distinct = write_manifest(store, request.dataset, shards)
        first = model.classes.first
        pixels = counts[first:]
        reached = (pixels / max(1, pixels.sum())).round(6).tolist()
        record = DatasetRecord(
            dataset=request.dataset,
            model=str(request.model_ref),
            images=sums["images"],
            size=model.size,
            mpp=model.mpp,
            classes=model.classes,
            proportions=dict(zip(model.classes.names[first:], reached, strict=True)),
            shards=shards,
            digests=tuple(digests[number] for number in numbers),
            manifest=manifest,
            slides=sha256(store.get(dataset_key(request.dataset, SLIDES))),
            origin=weights_origin(store, model),
            request=request,
            refused=sums["refused"],
            missing=sums["missing"],
        )
        if request.maps.sampled:  # each image has a map of its own
            distinct = record.images
        _write_exports(store, record, numbers)
        _, crops = open_banks(store, request, model)
        shown = list(itertools.islice(read_shard(store.get(shards[0])), PREVIEW_SAMPLES))
        preview = _preview(shown, crops, model, source_names(store, record))
        store.put(dataset_key(request.dataset, "preview.png"), preview)
        files = {f"shards/{number:06d}.tar": digests[number] for number in numbers}
        _describe(store, record, files, sorted(shown[0].provenance.weights))
        store.put_json(dataset_key(request.dataset, "dataset.json"), record)
        result: dict[str, Any] = {
            "dataset": request.dataset,
            "images": record.images,
            "refused": record.refused,
            "missing": record.missing,
            "distinct_maps": distinct,
            "wanted": request.proportions,
            "proportions": record.proportions,
        }
        if record.images >= IMAGES_PER_MAP * distinct:
            result["cautions"] = [
                f"{record.images} images show only {distinct} distinct label "
                f"map{'s' if distinct > 1 else ''}, turned and mirrored: who trains on them sees "
                "few arrangements of tissue. Regions of more slides, or other maps (--maps), make "
                "a dataset more diverse"
            ]
        return result


def _shards(request: DatasetRequest) -> Iterator[Shard]:
    for number, start in enumerate(range(0, request.images, request.shard_size)):
        stop = min(start + request.shard_size, request.images)
        yield Shard(id=f"shard-{number:06d}", args={"number": number, "start": start, "stop": stop})


def _shard_key(dataset: str, number: int) -> str:
    return dataset_key(dataset, f"shards/{number:06d}.tar")


def _export(kind: str, name: str) -> str:
    """Return the path below the dataset of a file `name` of an export: `exports/<kind>/…`."""
    return f"exports/{name}" if name.startswith(f"{kind}/") else f"exports/{kind}/{name}"


def _coco_key(dataset: str, number: int) -> str:
    return dataset_key(dataset, f"exports/coco/shards/{number:06d}.json")


def _model(store: Store, request: DatasetRequest) -> ModelRecord:
    return read_model(store, request.model_ref)


def _layouts(store: Store, request: DatasetRequest, model: ModelRecord) -> UNet2DModel | None:
    """Load the layout model, if the request samples its maps; raises as `load_layouts` does."""
    return load_layouts(store, model) if request.maps.sampled else None


def _check_room(store: Store, request: DatasetRequest, model: ModelRecord) -> None:
    """Raise `InputError` if the store has too little room for the images, by a low estimate."""
    copies = 1 + len(set(request.exports) - {"geojson"})
    needed = int(request.images * model.size**2 * BYTES_PER_PIXEL * copies)
    what = f"{request.images:,} images of {model.size} px"
    check_room(store, needed, what, "or ask for fewer")


def _choices(store: Store, dataset: str, start: int, stop: int) -> list[str]:
    """Read which regions give images `start` to `stop` - 1 their maps; return the regions' keys."""
    file = pq.ParquetFile(store.local(dataset_key(dataset, "choices.parquet")))
    first, last = start // CHOICE_ROWS, (stop - 1) // CHOICE_ROWS
    table = file.read_row_groups(list(range(first, last + 1)))
    keys: list[str] = table["region"].slice(start - first * CHOICE_ROWS, stop - start).to_pylist()
    return keys


def _drop_stale(store: Store, request: DatasetRequest, numbers: set[int]) -> None:
    """Delete files of an earlier request for this dataset that this request did not write."""
    shards = dataset_key(request.dataset, "shards/")
    for key in store.list(shards):
        stem = PurePosixPath(key).stem
        if not stem.isdecimal() or int(stem) not in numbers:
            store.delete(key)
    exports = dataset_key(request.dataset, "exports/")
    for key in store.list(exports):
        path = PurePosixPath(key.removeprefix(exports))
        current = path.parts[0] in request.exports
        if current and path.stem.isdigit():
            number = int(path.stem)
            if path.parts[1] == "shards":
                current = number in numbers
            else:
                current = number < request.images and number // request.shard_size in numbers
        if not current:
            store.delete(key)


def _describe(
    store: Store, record: DatasetRecord, digests: dict[str, str], weights: list[str]
) -> None:
    """Write the dataset's card and its Croissant metadata."""
    digests = digests | {"manifest.parquet": record.manifest}
    card = dataset_card(record, weights).encode()
    store.put(dataset_key(record.dataset, "README.md"), card)
    made = next(store.dates(record.shards[0]))[1].date()
    described = croissant(record, digests, made)
    store.put_json(dataset_key(record.dataset, "croissant.json"), described)


def _write_exports(store: Store, record: DatasetRecord, numbers: list[int]) -> None:
    request = record.request
    if "folder" in request.exports:
        key = dataset_key(request.dataset, _export("folder", "classes.json"))
        store.put(key, classes_json(record.classes))
    if "coco" in request.exports:

        def parts(name: str) -> Iterator[Any]:
            for number in numbers:
                yield from json.loads(store.get(_coco_key(request.dataset, number)))[name]

        key = dataset_key(request.dataset, _export("coco", "annotations.json"))
        with store.writing(key) as path, path.open("w", encoding="utf-8") as file:
            head = coco_info(record)
            write_coco(file, record.classes, parts("images"), parts("annotations"), head)


def _preview(
    samples: list[Sample], crops: RegionBank, model: ModelRecord, names: Mapping[str, str]
) -> bytes:
    """Draw samples of a dataset in rows, as PNG: label maps, crops, synthetic images."""
    canvases = [
        draw_crops(recut_crops(reveal(sample.provenance, names), crops.pixels), model.size)
        for sample in samples
    ]
    return preview_png(samples, model.classes, canvases)
