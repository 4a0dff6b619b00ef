"""The field stage: a probe, then the denoising steps of all strips, then their pixels.

Every step is a phase, because a strip needs rows of its neighbours from the step before. So no
window is computed twice, apart from those of the last two steps on the border of two strips, and a
killed worker loses one step of one strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from safetensors.torch import load, save

from services.field.crops import choose_crops
from services.field.maps import sample_map
from services.field.work import FieldWork, crop_key
from shared.contracts.field import (
    FieldCrop,
    FieldRecord,
    FieldRequest,
    field_key,
    work_key,
)
from shared.contracts.models import ModelRecord
from shared.datasets.exports import geojson_bytes
from shared.datasets.field_inputs import check_field, count_labels
from shared.diffusion.field_decoder import PIECE, FieldDecoder, probe
from shared.errors import JobError
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LABEL_TILE, LabelMap
from shared.imaging.marks import Mark, mark_xmp
from shared.imaging.pyramid import Deflate, Jpeg, Labels, TileCodec, write_pyramid
from shared.imaging.stored_slides import open_label_map
from shared.jobs import Context, Plan, Shard, Stage
from shared.jobs.made import DamagedOutputError
from shared.jobs.stage import PLAN, RecordingStore
from shared.models import read_model, weights_origin
from shared.serving.deployments import check_plan
from shared.settings import settings
from shared.storage import DamagedObjectError, ObjectNotFoundError, content_hash, sha256
from shared.storage.formats import read_tar, write_tar

STRIP_PIXELS = 2**24
"""Pixels of a strip, about, so that its memory does not grow with the field's width."""

OUTLINED = 2**25
"""Greatest number of pixels of a label map that is outlined at its full resolution."""


class FieldStage(Stage[FieldRequest]):
    """Makes fields."""

    name: ClassVar[str] = "field"
    request = FieldRequest

    def plan(self, request: FieldRequest, context: Context) -> Plan:
        store = context.store
        model = read_model(store, request.model_ref)
        steps = request.sampling(model).steps
        if request.sampled is not None:
            sample_map(request, request.sampled, model, context)
        digest = request.map_digest or content_hash(store.local(request.map_key))
        with open_label_map(store, request.map_key, digest) as labels:
            area, height, width = labels.width * labels.height, labels.height, labels.width
            check_field(store, model, width, height, request.compression)
            counts = count_labels(labels, model)
        present = np.flatnonzero(counts).tolist()
        crops = []
        chosen = choose_crops(store, request, model, present)
        places = list(dict.fromkeys(given.at for given, _ in chosen))
        for place in places if settings().triton_url else ():
            sides = [len(crop.pixels) for given, crop in chosen if given.at == place]
            check_plan(store, model, sides)
        for given, crop in chosen:
            png, number = encode_png(crop.pixels), places.index(given.at)
            store.put(crop_key(request.field, number, crop.label), png)
            used = FieldCrop(
                appearance=number, at=given.at, label=crop.label, sha256=sha256(png),
                regions=given.regions, region=given.region,
            )  # fmt: skip
            crops.append(used.model_dump(mode="json"))
        shares = (counts / area).tolist()
        facts: dict[str, Any] = {"crops": crops, "shares": shares, "map": digest}
        store.put_json(work_key(request.field, "plan.json"), facts)
        tops = range(0, height, request.strip or strip_height(width))
        strips = [
            {"top": top, "bottom": min(top + tops.step, height), "height": tops.step}
            for top in tops
        ]
        phases = [
            [
                Shard(id=f"step-{step:03d}-{n:05d}", args=dict(strip) | {"step": step})
                for n, strip in enumerate(strips)
            ]
            for step in range(steps)
        ]
        phases[0].append(Shard(id="probe"))
        phases.append([Shard(id=f"strip-{n:05d}", args=dict(s)) for n, s in enumerate(strips)])
        return Plan(phases=tuple(map(tuple, phases)))

    def run(self, request: FieldRequest, shard: Shard, context: Context) -> dict[str, Any]:
        with FieldWork.open(request, context) as work:
            if shard.id == "probe":
                context.store.put(work_key(request.field, "probe"), save(probe(work.sampler)))
                return {}
            arguments = {name: int(str(value)) for name, value in shard.args.items()}
            top, bottom = work.rows(arguments["top"], arguments["bottom"])
            if "step" in arguments:
                step = arguments["step"]
                span = work.sampler.span(step, top, bottom)
                if span[0] == span[1]:  # a low last strip, whose windows all begin above it
                    return {}
                given = work.read(step, arguments["height"], *work.sampler.reach(step, *span))
                work.write(step + 1, top, work.sampler.advance(step, given, *span))
                return {}
            fixed = load(context.store.get(work_key(request.field, "probe")))
            decoder = FieldDecoder(work.sampler, fixed)
            steps = work.sampler.sampling.steps
            given = work.read(steps, arguments["height"], *decoder.halo(top, bottom))
            codec = _codec(request)  # whose tiles are pieces
            pieces = decoder.pieces(given, top, bottom)
            tiles = (tile for piece in pieces for tile in codec.tiles(piece))
            key = _tiles_key(request.field, arguments["top"])
            with context.store.writing(key) as path, path.open("wb") as file:
                write_tar(file, ((f"{number:06d}", tile) for number, tile in enumerate(tiles)))
            rows = arguments["bottom"] - arguments["top"]
            return {"top": arguments["top"], "pixels": rows * work.sampler.labels.width}

    def finish(
        self, request: FieldRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store, model = context.store, read_model(context.store, request.model_ref)
        key = field_key(request.field, "field.json")
        if not store.exists(work_key(request.field, "plan.json")):
            return _result(_finished(store, request))
        facts = store.get_json(work_key(request.field, "plan.json"))
        with open_label_map(store, request.map_key, facts["map"]) as labels:
            tops = sorted(int(part["top"]) for part in done.values() if "top" in part)
            if sum(part.get("pixels", 0) for part in done.values()) != labels.width * labels.height:
                raise JobError(
                    f"field {request.field!r}: not all strips were made, and a field with holes "
                    "is none; look at the failed shards, and submit the request again"
                )
            step = max(1, math.isqrt(labels.width * labels.height // OUTLINED))
            digests = _write_files(request, model, store, labels, tops, step)
            record = FieldRecord(
                field=request.field,
                model=str(model.ref),
                weights=model.sha256,
                origin=weights_origin(store, model),
                width=labels.width,
                height=labels.height,
                mpp=model.mpp,
                classes=model.classes,
                shares=dict(zip(model.classes.names, facts["shares"], strict=True)),
                crops=facts["crops"],
                sampling=request.sampling(model),
                request=request,
                sha256=digests,
                outline_step=step,
            )
        store.put_json(key, record)
        store.delete_prefix(work_key(request.field, ""))
        return _result(record)


def _finished(store: RecordingStore, request: FieldRequest) -> FieldRecord:
    """Return the record of a field whose `finish` broke off after its end.

    Raises:
        DamagedOutputError: the record is of another request, or files are not as it says.
    """
    key = field_key(request.field, "field.json")
    lost = DamagedOutputError(PLAN, work_key(request.field, "plan.json"))
    try:
        digest = sha256(store.get(key))
        record = store.get_model(key, FieldRecord)
    except (ObjectNotFoundError, DamagedObjectError) as error:
        raise lost from error
    files = {field_key(request.field, name): own for name, own in record.sha256.items()}
    files[key] = digest
    if record.request != request or not all(store.adopt(*each) for each in files.items()):
        raise lost
    return record


def _result(record: FieldRecord) -> dict[str, Any]:
    plain = record.model_dump(mode="json")
    return {name: plain[name] for name in ("field", "width", "height", "mpp", "shares")}


def _write_files(
    request: FieldRequest,
    model: ModelRecord,
    store: RecordingStore,
    labels: LabelMap,
    tops: list[int],
    step: int,
) -> dict[str, str]:
    """Write the slide, the label pyramid and the outlines; return file → SHA-256."""
    field = request.field
    xmp = mark_xmp(Mark(str(model.ref), field))
    shape = (labels.height, labels.width)

    def tiles() -> Iterator[bytes]:
        for top in tops:
            with store.local(_tiles_key(field, top)).open("rb") as file:
                yield from (tile for _, tile in read_tar(file))

    def label_tiles() -> Iterator[bytes]:
        for top in range(0, labels.height, LABEL_TILE):
            rows = min(LABEL_TILE, labels.height - top)
            yield from Labels().tiles(labels.window(0, top, labels.width, rows))

    with store.writing(field_key(field, "slide.tiff")) as path:
        write_pyramid(path, tiles(), (*shape, 3), model.mpp, _codec(request), xmp)
    with store.writing(field_key(field, "labels.tiff")) as path:
        write_pyramid(path, label_tiles(), shape, model.mpp, Labels(), xmp)
    tall = LABEL_TILE * step
    rows = [
        labels.window(0, top, labels.width, min(tall, labels.height - top))[::step, ::step].copy()
        for top in range(0, labels.height, tall)
    ]
    outlines = geojson_bytes(np.concatenate(rows), model.classes, step)
    store.put(field_key(field, "regions.geojson"), outlines)
    keys = {
        name: field_key(field, name) for name in ("slide.tiff", "labels.tiff", "regions.geojson")
    }
    return {name: store.outputs[key] for name, key in keys.items()}


def _codec(request: FieldRequest) -> TileCodec:
    return Jpeg() if request.compression == "jpeg" else Deflate()


def _tiles_key(field: str, top: int) -> str:
    return work_key(field, f"tiles/{top:07d}.tar")


def strip_height(width: int) -> int:
    """Return the height of strips: a multiple of the side of tiles and of decoded pieces."""
    return PIECE * min(4, max(1, round(STRIP_PIXELS / width / PIECE)))
