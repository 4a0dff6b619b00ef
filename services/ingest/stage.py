"""The ingest stage: one shard for each slide, and for each slide that tiles were cut from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from services.ingest.annotations import format_of, label_strips
from services.ingest.patches import patch_index
from services.ingest.splits import (
    assign_splits,
    class_regions,
    earlier_cohort,
    leaks,
    members_of,
)
from services.ingest.tiles import cut_tiles, read_tiles
from services.ingest.tissue import MPP, stain_of, tissue_mask
from shared.arrays import UInt8
from shared.contracts.ingest import (
    CohortRecord,
    IngestRequest,
    SlideRecord,
    SlideSource,
    cohort_key,
    patches_key,
    slide_key,
)
from shared.contracts.regions import (
    RegionSet,
    RegionSetSlide,
    region_set_key,
)
from shared.errors import InputError
from shared.imaging.codec import encode_png
from shared.imaging.label_map import LabelMap, write_label_map
from shared.imaging.region_cutting import cut_regions
from shared.imaging.slide import Slide, local_source
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import sha256_file
from shared.storage.formats import table_bytes

THUMBNAIL_SIDE = 1024
"""Greatest side of a thumbnail, pixels."""

MAX_MASK_SIDE = 8192
"""Greatest side of a tissue mask, pixels."""


class IngestStage(Stage[IngestRequest]):
    """Turns slides with annotations, or tiles with masks, into label maps, patches and regions."""

    name: ClassVar[str] = "ingest"
    request = IngestRequest

    def plan(self, request: IngestRequest, context: Context) -> Plan:
        tiles = read_tiles(context.store, request.tiles) if request.tiles else {}
        members_of(request, tiles, {})
        slides = [item.slide for item in request.slides]
        if both := sorted(set(slides) & set(tiles)):
            raise InputError(f"{both} are names of slides and also of slides of tiles: rename them")
        return Plan(phases=(tuple(Shard(id=name) for name in (*slides, *tiles)),))

    def run(self, request: IngestRequest, shard: Shard, context: Context) -> dict[str, Any]:
        summary = self._run(request, shard, context)
        if request.classes is not None and summary["region_sha256"] is not None:
            summary["class_regions"] = class_regions(
                context.store, request.cohort, shard.id, len(request.classes)
            )
        return summary

    def _run(self, request: IngestRequest, shard: Shard, context: Context) -> dict[str, Any]:
        if request.tiles and shard.id not in {item.slide for item in request.slides}:
            return _ingest_tiles(request, request.tiles, shard.id, context)
        source = next(item for item in request.slides if item.slide == shard.id)
        with (
            local_source(context.store, source.source) as path,
            Slide.open(path, source.mpp) as slide,
        ):
            return _ingest(request, source, path, slide, context)

    def finish(
        self, request: IngestRequest, done: dict[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store = context.store
        tiles = read_tiles(store, request.tiles) if request.tiles else {}
        members = members_of(request, tiles, done)
        splits = assign_splits(request.split, members, earlier_cohort(store, request.cohort))
        cautions = tuple(leaks(members, splits))
        slides = sorted({item.slide for item in request.slides} & set(done))
        if slides:
            record = CohortRecord(
                cohort=request.cohort,
                classes=request.classes,
                patches=request.patches,
                splits={name: splits[name] for name in slides},
                sha256={name: done[name]["sha256"] for name in slides},
                patients={name: p for name in slides if (p := members[name].patient)},
                sites={name: s for name in slides if (s := members[name].site)},
                split=request.split,
                cautions=cautions,
            )
            store.put_json(cohort_key(request.cohort), record)
        labelled = [name for name in sorted(done) if done[name]["region_sha256"] is not None]
        if request.classes is not None:
            regions = RegionSet(
                name=request.cohort,
                cohort=request.cohort,
                labels="annotation",
                classes=request.classes,
                rule=request.regions,
                slides=tuple(
                    RegionSetSlide(
                        slide=name,
                        split=splits[name],
                        regions=done[name]["regions"],
                        sha256=done[name]["region_sha256"],
                        patient=members[name].patient,
                        class_regions=tuple(done[name].get("class_regions", ())),
                    )
                    for name in labelled
                ),
                cautions=cautions,
            )
            store.put_json(region_set_key(request.cohort), regions)
        result: dict[str, Any] = {
            "slides": len(done),
            "patients": len({m.patient for m in members.values() if m.patient}),
            "labelled": len(labelled),
            "patches": sum(part["patches"] for part in done.values()),
            "regions": sum(part["regions"] for part in done.values()),
        }
        left_out = {
            k: v for name in sorted(done) for k, v in done[name].get("left_out", {}).items()
        }
        return result | ({"left_out": left_out} if left_out else {})


def _ingest_tiles(
    request: IngestRequest, tiles: str, slide: str, context: Context
) -> dict[str, Any]:
    if request.classes is None:
        raise InputError(f"the tiles of {slide} have masks, so the request must state classes")
    rows = read_tiles(context.store, tiles)[slide]
    regions, region_sha, left_out = cut_tiles(
        context.store, request.cohort, slide, rows, request.classes, request.regions
    )
    return {"patches": 0, "regions": regions, "region_sha256": region_sha, "left_out": left_out}


def _ingest(
    request: IngestRequest, source: SlideSource, path: Path, slide: Slide, context: Context
) -> dict[str, Any]:
    store, name = context.store, source.slide
    slide.check_mpp(request.patches.mpp)
    side = min(MAX_MASK_SIDE, math.ceil(max(slide.width, slide.height) * slide.mpp / MPP))
    if min(slide.width, slide.height) * slide.mpp < request.patches.size * request.patches.mpp:
        raise InputError(
            f"{path.name} is {slide.width}×{slide.height} px, smaller than one patch of "
            f"{request.patches.size} px at {request.patches.mpp} µm/px: leave it out"
        )
    small = slide.thumbnail(max(64, side))
    tissue = tissue_mask(small, slide.width * slide.mpp / small.shape[1])
    stain = stain_of(small, tissue)
    if stain == "other" and not request.allow_other_stains:
        raise InputError(
            f"{path.name} does not look like H&E (fluorescence, IHC or another stain?): leave it "
            "out, or ingest it with allow_other_stains"
        )
    if not tissue.any():
        raise InputError(f"{path.name} shows no tissue: leave it out")
    context.progress(1, 4, "tissue found")
    labels_key = slide_key(name, "labels.tif")
    if source.labels is not None:
        slide.check_mpp(request.regions.mpp)
        with store.writing(labels_key) as file:
            _write_labels(request, source, slide, file, context)
    context.progress(2, 4, "label map written")
    regions, region_sha = 0, None
    labels = LabelMap(store.local(labels_key)) if source.labels is not None else None
    classes = len(request.classes) if request.classes else 1
    patches = patch_index(slide, tissue, request.patches, labels, classes)
    store.put(patches_key(request.cohort, name), table_bytes(patches))
    context.progress(3, 4, "patches listed")
    if labels is not None:
        regions, region_sha = cut_regions(
            store, request.cohort, name, slide, labels, classes, request.regions
        )
    store.put(slide_key(name, "tissue.png"), encode_png(tissue.astype(np.uint8) * 255))
    store.put(slide_key(name, "thumbnail.png"), encode_png(_shrunk(small)))
    record = SlideRecord(
        slide=name,
        source=source.source,
        sha256=sha256_file(path),
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp,
        mpp_y=slide.mpp_y,
        vendor=slide.vendor,
        levels=slide.levels,
        objective=slide.objective,
        tissue_fraction=round(float(tissue.mean()), 4),
        stain=stain,
        labels=labels_key if labels is not None else None,
        labels_mpp=request.regions.mpp if labels is not None else None,
    )
    store.put_json(slide_key(name), record)
    return {
        "sha256": record.sha256,
        "patches": patches.num_rows,
        "regions": regions,
        "region_sha256": region_sha,
        "stain": stain,
    }


def _write_labels(
    request: IngestRequest, source: SlideSource, slide: Slide, file: Path, context: Context
) -> None:
    if request.classes is None or source.labels is None:
        raise InputError(f"{source.slide} has an annotation, so the request must state classes")
    with local_source(context.store, source.labels) as path:
        kind = source.label_format or format_of(path)
        factor = request.regions.mpp / slide.mpp
        size = (max(1, round(slide.width / factor)), max(1, round(slide.height / factor)))
        strips = label_strips(
            path, kind, request.classes, request.label_names, (slide.width, slide.height), size
        )
        write_label_map(file, strips, *size, request.regions.mpp)


def _shrunk(rgb: UInt8) -> UInt8:
    factor = min(1.0, THUMBNAIL_SIDE / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
