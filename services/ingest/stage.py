"""The ingest stage: one shard for each slide, and for each slide that tiles were cut from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from services.ingest.annotations.drawing import draw_labels
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.patches import check_size, patch_index
from services.ingest.remarks import doubtful_resolutions, remarks, synthetic_slides, why_no_regions
from services.ingest.splits import (
    assign_splits,
    changed_splits,
    class_regions,
    earlier_splits,
    kept_splits,
    leaks,
    members_of,
    skipped_slides,
)
from services.ingest.tile_tables import read_tiles
from services.ingest.tiles import check_masks, cut_tiles
from services.ingest.tissue import MPP, Mask, find_tissue
from shared.arrays import UInt8
from shared.contracts.ingest import (
    CohortRecord,
    IngestRequest,
    SlideRecord,
    SlideSource,
    cohort_key,
    label_map_key,
    patches_key,
    slide_key,
)
from shared.contracts.regions import RegionSet, RegionSetSlide
from shared.errors import InputError, all_quoted
from shared.imaging.codec import encode_png
from shared.imaging.marks import mark_png
from shared.imaging.region_cutting import cut_regions
from shared.imaging.region_index import put_region_set
from shared.imaging.slide import Slide
from shared.imaging.stored_slides import local_source, open_label_map, slide_hash, unchanged
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import Store, content_hash, file_identity, file_size, sha256
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
        if request.classes is not None and not request.label_names:
            check_masks(context.store, tiles, request.classes)
        slides = [item.slide for item in request.slides]
        if both := sorted(set(slides) & set(tiles)):
            raise InputError(
                f"{all_quoted(both)} are names of slides and also of slides of tiles: rename them"
            )
        shards = [_shard(request, item, context.store) for item in request.slides]
        return Plan(phases=((*shards, *(Shard(id=name) for name in tiles)),))

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
        with local_source(context.store, source.source) as path:
            digest = source.sha256 or slide_hash(path, source.parts)
            with (
                unchanged(path, source.parts, digest, f"slide {source.slide!r}"),
                Slide.open(path, source.mpp) as slide,
            ):
                return _ingest(request, source, path, digest, slide, context)

    def finish(
        self, request: IngestRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store = context.store
        tiles = read_tiles(store, request.tiles) if request.tiles else {}
        members = members_of(request, tiles, done)
        earlier = earlier_splits(store, request, tiles, done)
        splits = assign_splits(request.split, members, earlier)
        cautions = (*leaks(members, splits), *doubtful_resolutions(done), *synthetic_slides(done))
        slides = sorted({item.slide for item in request.slides} & set(done))
        if slides:
            record = CohortRecord(
                cohort=request.cohort,
                classes=request.classes,
                patches=request.patches,
                splits={name: splits[name] for name in slides},
                sha256={name: done[name]["sha256"] for name in slides},
                stored_as={
                    item.slide: item.stored_as
                    for item in request.slides
                    if item.slide in done and item.stored_as is not None
                },
                mpp={name: done[name]["mpp"] for name in slides},
                places={name: done[name]["places_sha256"] for name in slides},
                counts={name: done[name]["patches"] for name in slides},
                labels={name: d for name in slides if (d := done[name].get("labels_sha256"))},
                patients={name: p for name in slides if (p := members[name].patient)},
                sites={name: s for name in slides if (s := members[name].site)},
                split=request.split,
                regions=request.regions,
                cautions=cautions,
                skipped=skipped_slides(store, request, done),
            )
            store.put_json(cohort_key(request.cohort), record)
        else:  # the name may have been that of a cohort of slides
            store.delete(cohort_key(request.cohort))
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
                        synthetic=done[name].get("synthetic", False),
                    )
                    for name in labelled
                ),
                split=request.split,
                tiles=request.tiles,
                cautions=cautions,
            )
            cautions = put_region_set(store, regions).cautions
        result: dict[str, Any] = {
            "slides": len(done),
            "patients": len({m.patient for m in members.values() if m.patient}),
            "labelled": len(labelled),
            "patches": sum(part["patches"] for part in done.values()),
            "regions": sum(part["regions"] for part in done.values()),
            **_counts(
                splits_kept=kept_splits(splits, members, earlier),
                transparent_tiles_laid_on_white=sum(
                    part.get("transparent", 0) for part in done.values()
                ),
            ),
            **remarks(request, done),
        }
        if cautions:
            result["cautions"] = list(cautions)
        if changed := changed_splits(splits, earlier):
            result["splits changed"] = changed
        if not result["regions"]:
            result["no regions"] = [why_no_regions(request, labelled)]
        left_out = {
            k: v for name in sorted(done) for k, v in done[name].get("left_out", {}).items()
        }
        return result | ({"left_out": left_out} if left_out else {})


def _shard(request: IngestRequest, source: SlideSource, store: Store) -> Shard:
    """Return the shard of a slide, with the files and options that its outputs follow from."""
    options = request.model_dump_json(exclude={"slides", "tiles", "split"})
    own = source.model_dump_json(exclude={"patient", "site", "split"})
    reads = {"options": sha256(options.encode()), "slide": sha256(own.encode())}
    reads |= {name: file_identity(store, name) for name in source.unhashed}
    return Shard(id=source.slide, reads=reads, size=file_size(store, source.source))


def _ingest_tiles(
    request: IngestRequest, tiles: str, slide: str, context: Context
) -> dict[str, Any]:
    if request.classes is None:
        raise InputError(f"the tiles of {slide} have masks, so the request must state classes")
    rows = read_tiles(context.store, tiles)[slide]
    cut = cut_tiles(
        context.store, request.cohort, slide, rows, request.classes, request.regions,
        request.label_names,
    )  # fmt: skip
    return {
        "patches": 0,
        "regions": cut.regions,
        "region_sha256": cut.sha256,
        "left_out": cut.left_out,
        "transparent": cut.transparent,
        "synthetic": cut.synthetic > 0,
        "renamed": sorted(cut.renamed),
    }


def _ingest(
    request: IngestRequest,
    source: SlideSource,
    path: Path,
    digest: str,
    slide: Slide,
    context: Context,
) -> dict[str, Any]:
    store, name, folder = context.store, source.slide, source.folder
    slide.check_mpp(request.patches.mpp)
    check_size(slide, request.patches)
    spans = (slide.width * slide.mpp, slide.height * slide.mpp_y)
    side = min(MAX_MASK_SIDE, math.ceil(max(spans) / MPP))
    small, damaged = slide.thumbnail(max(64, side), request.max_damaged)
    mpp = spans[0] / small.shape[1]
    tissue, stain = find_tissue(path.name, small, mpp, request.allow_other_stains)
    context.progress(1, 4, "tissue found")
    labels_key = label_map_key(folder, request.cohort)
    drawn: dict[str, Any] | None = None
    if source.labels is not None:
        slide.check_mpp(request.regions.mpp)
        with store.writing(labels_key) as file:
            drawn = _write_labels(request, source, slide, tissue, file, context)
    else:  # the slide may have been labelled when it was ingested before
        store.delete(labels_key)
    context.progress(2, 4, "label map written")
    regions, region_sha, labels_sha = 0, None, None
    labels = open_label_map(store, labels_key) if source.labels is not None else None
    classes = len(request.classes) if request.classes else 1
    patches = patch_index(slide, tissue, request.patches, labels, classes)
    store.put(patches_key(request.cohort, name), table_bytes(patches))
    context.progress(3, 4, "patches listed")
    if labels is not None:
        labels_sha = content_hash(store.local(labels_key))
        cut = cut_regions(store, request.cohort, name, slide, labels, classes, request.regions)
        windows = cut.regions + cut.damaged
        damaged = max(damaged, cut.damaged / max(1, windows))
        if damaged > request.max_damaged:
            raise InputError(
                f"{path.name} cannot be read in {cut.damaged} of its {windows} regions. The file "
                "is damaged or incomplete: copy it again, or raise max_damaged"
            )
        regions, region_sha = cut.regions, cut.sha256
    store.put(slide_key(folder, "tissue.png"), encode_png(tissue.astype(np.uint8) * 255))
    thumbnail = encode_png(_shrunk(small))
    if slide.mark:
        thumbnail = mark_png(thumbnail, slide.mark)
    store.put(slide_key(folder, "thumbnail.png"), thumbnail)
    record = SlideRecord(
        slide=folder,
        source=source.source,
        parts=source.parts,
        sha256=digest,
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp,
        mpp_y=slide.mpp_y,
        vendor=slide.vendor,
        levels=slide.levels,
        objective=slide.objective,
        tissue_fraction=round(float(tissue.mean()), 4),
        stain=stain,
        synthetic=slide.mark is not None,
    )
    store.put_json(slide_key(folder), record)
    corners = np.stack([np.asarray(patches["x"]), np.asarray(patches["y"])], 1)
    return {
        "sha256": record.sha256,
        "mpp": record.mpp,
        "places_sha256": sha256(corners.astype("<i8").tobytes()),
        "patches": patches.num_rows,
        "regions": regions,
        "region_sha256": region_sha,
        "labels_sha256": labels_sha,
        "stain": stain,
        "synthetic": record.synthetic,
        "damaged": damaged,
        "mpp_y": record.mpp_y,
        "stated_mpp": slide.stated_mpp,
        "implied_mpp": slide.stated_mpp[0]
        if slide.stated_mpp
        else 10 / slide.objective
        if slide.objective
        else None,
        "labels": drawn,
    }


def _write_labels(
    request: IngestRequest,
    source: SlideSource,
    slide: Slide,
    tissue: Mask,
    file: Path,
    context: Context,
) -> dict[str, Any]:
    with local_source(context.store, source.labels or "") as path:
        digest = source.labels_sha256 or content_hash(path)
        with unchanged(path, (), digest, f"annotation of {source.slide!r}"):
            return draw_labels(
                file, path, SlideGeometry.of(slide), tissue, source, request,
                lambda done, rows: context.progress(1, 4, f"{done} of {rows} rows of labels drawn"),
            )  # fmt: skip


def _shrunk(rgb: UInt8) -> UInt8:
    factor = min(1.0, THUMBNAIL_SIDE / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _counts(**counts: int) -> dict[str, int]:
    """Leave out counts of 0."""
    return {name: count for name, count in counts.items() if count}
