"""The cluster stage finds the tissue types of a cohort.

Its phases are: sample the features of each training slide, cluster the samples, assign the patches
of all slides to clusters, several small slides at a time, train the light classifier if it is
requested, and cut regions.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import safetensors.torch

from services.cluster.classifier import accuracy, train_classifier
from services.cluster.gallery import read_assignments, read_patches
from services.cluster.kmeans import assign, hierarchical_kmeans
from services.cluster.maps import type_map, vote
from services.cluster.patches import per_slide, sample_patches, stream_patches
from services.cluster.regions import check_types, cut_slide, sum_up, types_digest, write_map
from services.cluster.units import assignment_units
from shared.arrays import Float16, Float32, Int64, UInt8
from shared.computing import machine_memory
from shared.contracts.cluster import (
    ClusterRecord,
    ClusterRequest,
    TissueType,
    cluster_key,
    default_types,
    write_types,
)
from shared.contracts.embed import FeatureRecord, feature_record_key
from shared.contracts.ingest import CohortRecord, cohort_key
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.imaging.stored_slides import read_record
from shared.jobs import Context, Plan, Shard, Stage
from shared.jobs.records import READERS
from shared.storage import DamagedObjectError, ObjectNotFoundError, Store, sha256
from shared.storage.formats import table_bytes
from shared.tissue_types import classes_of, read_types

FIT, CLASSIFY, ASSIGN = "fit", "classifier", "assign-"
CLASSIFIER_PATCHES, CLASSIFIER_SLIDES = 4000, 100
"""Greatest numbers of patches that the light classifier is trained on, and of their slides."""


class ClusterStage(Stage[ClusterRequest]):
    """Finds the tissue types of a cohort, and cuts regions along them."""

    name: ClassVar[str] = "cluster"
    request = ClusterRequest

    def plan(self, request: ClusterRequest, context: Context) -> Plan:
        record = _cohort(context.store, request)
        training, every = record.of_split("train"), sorted(record.splits)
        if not training:
            raise InputError(
                f"no slide of {request.cohort!r}'s train split has features of "
                f"{request.encoder!r}: embed them first"
            )
        stride = record.patches.stride * record.patches.mpp
        rule = request.rule(record)
        side = rule.size * rule.mpp
        if rule.min_classes > 1 and side < 2 * stride:
            raise InputError(
                f"patches every {stride:g} µm are too coarse for regions of {side:g} µm, which "
                "would hold one tissue type each: ingest the cohort with a smaller patch stride "
                "(a quarter of a region or less), or ask for larger regions"
            )
        _check_samples(context.store, request, training)
        return _plan(request, rule, training, every, context.store)

    def run(self, request: ClusterRequest, shard: Shard, context: Context) -> dict[str, Any]:
        slide = str(shard.args.get("slide", ""))
        if shard.id.startswith("sample-"):
            return sample_patches(request, shard, context.store)
        if shard.id == FIT:
            return _fit(request, context)
        if shard.id.startswith(ASSIGN):
            return _assign(request, shard, context)
        if shard.id == CLASSIFY:
            return _classify(request, context)
        cohort = _cohort(context.store, request, slide)
        rule = request.rule(cohort)
        done = cut_slide(context.store, request.run, request.k, cohort, slide, rule)
        check_types(request.run, done["types"], (shard.reads or {}).get("types", done["types"]))
        return done

    def finish(
        self, request: ClusterRequest, done: Mapping[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store, record = context.store, _cohort(context.store, request)
        parts = [part for unit, part in done.items() if unit.startswith(ASSIGN)]
        counts = np.sum([part["counts"] for part in parts], 0)
        sums = np.sum([part["distances"] for part in parts], 0)
        clustering = ClusterRecord(
            run=request.run,
            cohort=request.cohort,
            encoder=request.encoder,
            k=request.k,
            counts=tuple(counts.tolist()),
            mean_distance=tuple(np.round(sums / np.maximum(counts, 1), 6).tolist()),
            classifier_accuracy=done.get(CLASSIFY, {}).get("accuracy"),
            classifier_slides=tuple(done.get(CLASSIFY, {}).get("slides", ())),
            centroids=sha256(store.get(cluster_key(request.run, "centroids.npy"))),
        )
        store.put_json(cluster_key(request.run, "run.json"), clustering)
        shards = {name: f"regions-{name}" for name in sorted(record.splits)}
        cut = {name: done[shard] for name, shard in shards.items() if shard in done}
        rule = request.rule(record)
        regions = sum_up(store, clustering, rule, cut)
        total = sum(part.regions for part in regions.slides)
        return {
            "types": request.k,
            "classes": len(regions.classes) - 1,
            "patches": int(counts.sum()),
            "regions": total,
            "classifier_accuracy": clustering.classifier_accuracy,
            **({} if total else {"no regions": [rule.why_none()]}),
        }


def _plan(
    request: ClusterRequest, rule: RegionRule, training: list[str], every: list[str], store: Store
) -> Plan:
    """Cut the work into shards, and state what each of them reads.

    If slides are added to the cohort, the tissue types stay: they keep their names.
    """
    _, merged = classes_of(_types(store, request))
    embedded = store.get_model(feature_record_key(request.encoder, request.cohort), FeatureRecord)
    features, patches = embedded.sha256, embedded.slides
    fit = request.model_dump_json(exclude={"regions", "smoothing", "classifier_steps"})
    cut = types_digest(merged, rule)

    units = assignment_units({slide: patches[slide] for slide in every})
    unit_of = {slide: f"{ASSIGN}{slides[0]}" for slides in units for slide in slides}

    def shard(kind: str, slide: str, *after: str, **more: str) -> Shard:
        reads = {"request": sha256(fit.encode()), slide: features[slide], **more}
        return Shard(id=f"{kind}-{slide}", args={"slide": slide}, reads=reads, after=after)

    own = {"request": sha256(fit.encode()), **{slide: features[slide] for slide in training}}
    phases = [
        tuple(
            shard("sample", slide).model_copy(
                update={"args": {"slide": slide, "count": per_slide(request, len(training))}}
            )
            for slide in training
        ),
        (Shard(id=FIT, reads=own, grows=True),),
        tuple(
            Shard(
                id=f"{ASSIGN}{slides[0]}",
                args={"slides": list(slides)},
                reads={
                    "request": sha256(fit.encode()),
                    "slides": sha256(json.dumps([(s, features[s]) for s in slides]).encode()),
                    "smoothing": str(request.smoothing),
                },
                after=(FIT,),
                size=sum(patches[slide] for slide in slides),
            )
            for slides in units
        ),
    ]
    if request.classifier_steps:
        steps = {"steps": str(request.classifier_steps)}
        phases.append((Shard(id=CLASSIFY, reads=own | steps, after=(FIT,), grows=True),))
    phases.append(tuple(shard("regions", slide, unit_of[slide], types=cut) for slide in every))
    return Plan(phases=tuple(phases))


def _types(store: Store, request: ClusterRequest) -> dict[int, TissueType]:
    """Read the names of the tissue types; the default ones if there are none for these types."""
    names, key = (cluster_key(request.run, name) for name in ("types.yaml", "centroids.npy"))
    other = store.exists(key) and len(_load(store, key)) != request.k
    if other or not store.exists(names):
        return default_types(request.k)
    return read_types(store, request.run, request.k)


def _cohort(store: Store, request: ClusterRequest, *slides: str) -> CohortRecord:
    """Read the cohort's record as `_inputs` does."""
    return _inputs(store, request, *slides)[0]


def _inputs(
    store: Store, request: ClusterRequest, *slides: str
) -> tuple[CohortRecord, FeatureRecord]:
    """Read the cohort's record, without slides that have no features, and that of the features.

    The features must be of the patches of `slides`; of all slides, if none is named.
    """
    record = store.get_model(cohort_key(request.cohort), CohortRecord)
    key = feature_record_key(request.encoder, request.cohort)
    features = store.get_model(key, FeatureRecord)
    features.check(record, *slides)
    splits = {name: split for name, split in record.splits.items() if name in features.slides}
    return record.model_copy(update={"splits": splits}), features


def _check_samples(store: Store, request: ClusterRequest, training: list[str]) -> None:
    """Raise `InputError` if the training slides have fewer patches than clusters are wanted."""
    record = store.get_model(feature_record_key(request.encoder, request.cohort), FeatureRecord)
    most = per_slide(request, len(training))
    counts = [min(record.slides.get(name, 0), most) for name in training]
    if sum(counts) < request.k:
        raise InputError(
            f"k is {request.k}, but the {len(training)} training slides of cohort "
            f"{request.cohort!r} give {sum(counts)} patches to cluster: lower k, add slides, or "
            "raise sample_per_slide or max_samples"
        )
    needed = sum(counts) * record.dim * 2
    if needed > machine_memory():
        raise InputError(
            f"{sum(counts):,} sampled patches of {record.dim} numbers take {needed / 1e9:,.1f} GB, "
            f"but this machine has {machine_memory() / 1e9:,.1f} GB of memory: lower max_samples"
        )


def _fit(request: ClusterRequest, context: Context) -> dict[str, Any]:
    """Cluster the samples of all training slides, which lie in a file meanwhile."""
    store = context.store
    slides = _cohort(store, request).of_split("train")
    most, rows, width = per_slide(request, len(slides)), 0, 0
    with tempfile.TemporaryFile(prefix="htd-samples-") as file:
        for sample in _samples(store, request.run, slides):
            # Kept samples of a smaller cohort are larger than the share that slides have now.
            part = np.linspace(0, len(sample) - 1, min(len(sample), most)).round().astype(int)
            file.write(sample[part].astype(np.float16).tobytes())
            rows, width = rows + len(part), sample.shape[1]
        file.flush()
        points = np.memmap(file, np.float16, "r", shape=(rows, width))
        context.progress(0, 1, f"{rows:,} samples, {points.nbytes / 1e9:,.1f} GB")
        first = request.first_k or max(2, request.k // 2)
        centroids = hierarchical_kmeans(
            points, request.k, first, request.iterations, request.seed, context.device
        )
    body = io.BytesIO()
    np.save(body, centroids)
    _keep_names(store, request, body.getvalue())
    store.put(cluster_key(request.run, "centroids.npy"), body.getvalue())
    return {"samples": rows}


def _samples(store: Store, run: str, slides: list[str]) -> Iterator[Float16]:
    """Yield the sample of each slide, float16 (n, d); `READERS` of them are fetched at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(slides), READERS):
            keys = [cluster_key(run, f"samples/{s}.npy") for s in slides[start : start + READERS]]
            for data in pool.map(store.get, keys):
                yield np.load(io.BytesIO(data), allow_pickle=False)  # noqa: TID251 - our own


def _keep_names(store: Store, request: ClusterRequest, centroids: bytes) -> None:
    """Keep the names of tissue types only if the types are the same as before."""
    names, key = (cluster_key(request.run, name) for name in ("types.yaml", "centroids.npy"))
    if store.exists(names):
        if not store.exists(key) or store.get(key) == centroids:
            return
        with suppress(ObjectNotFoundError, DamagedObjectError):  # those that are there are damaged
            record = store.get_model(cluster_key(request.run, "run.json"), ClusterRecord)
            if record.centroids == sha256(centroids):
                return
        store.put(cluster_key(request.run, "types-of-earlier-clusters.yaml"), store.get(names))
    store.put(names, write_types(default_types(request.k)))


def _load(store: Store, key: str) -> Float32:
    array: Float32 = np.load(io.BytesIO(store.get(key)), allow_pickle=False)  # noqa: TID251 - our own
    return array


def _assign(request: ClusterRequest, shard: Shard, context: Context) -> dict[str, Any]:
    """Assign the patches of some slides to their nearest centroids; return sums per cluster."""
    slides = cast(list[str], shard.args["slides"])
    cohort, features = _inputs(context.store, request, *slides)
    centroids = _load(context.store, cluster_key(request.run, "centroids.npy"))
    counts, distances, seen = np.zeros(request.k, np.int64), np.zeros(request.k), 0

    def report(patches: int) -> None:
        nonlocal seen
        seen += patches
        context.progress(seen, int(shard.size), slide)

    for slide in slides:
        patches = stream_patches(context.store, request, slide, features.sha256.get(slide))
        clusters, distance = _assign_slide(
            request, cohort, slide, patches, centroids, context.store, report
        )
        counts += np.bincount(clusters, minlength=request.k)
        distances += np.bincount(clusters, distance, request.k)
    return {"counts": counts.tolist(), "distances": distances.round(4).tolist()}


def _assign_slide(
    request: ClusterRequest,
    cohort: CohortRecord,
    slide: str,
    patches: Iterable[tuple[Int64, Float32]],
    centroids: Float32,
    store: Store,
    report: Callable[[int], None],
) -> tuple[UInt8, Float32]:
    """Write the table of a slide's assignments, made chunk by chunk, and its label map.

    Returns:
        uint8 (n,) clusters of its patches, and float32 (n,) cosine distances to their centroids.
    """
    places, labels = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.uint8)]
    nearest = [np.zeros(0, np.float32)]
    for where, features in patches:
        label, distance = assign(features, centroids)
        places.append(where)
        labels.append(label.astype(np.uint8))
        nearest.append(distance)
        report(len(where))
    coords, clusters = np.concatenate(places), np.concatenate(labels)
    distances = np.concatenate(nearest)
    table = pa.table(
        {"x": coords[:, 0], "y": coords[:, 1], "cluster": clusters, "distance": distances}
    )
    store.put(cluster_key(request.run, f"assignments/{slide}.parquet"), table_bytes(table))
    record, grid = read_record(store, cohort, slide), cohort.patches
    covers = max(1, round(grid.size / grid.stride))
    types = type_map(coords, clusters, record, grid)
    with store.writing(cluster_key(request.run, f"labels/{slide}.tif")) as path:
        write_map(path, vote(types, request.k, covers, request.smoothing), grid.stride * grid.mpp)
    return clusters, distances


def _classify(request: ClusterRequest, context: Context) -> dict[str, Any]:
    record = _cohort(context.store, request)
    rng = np.random.default_rng([request.seed, 6])
    train, held = (
        sorted(rng.permutation(slides)[:CLASSIFIER_SLIDES].tolist())
        for slides in (record.of_split("train"), record.of_split("val", "test"))
    )
    training = _labelled(request, record, train, CLASSIFIER_PATCHES, context.store)
    model = train_classifier(
        *training, request.k, request.classifier_steps, request.seed, context.device,
        context.progress,
    )  # fmt: skip
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(weights)
    context.store.put(cluster_key(request.run, "classifier.safetensors"), data)
    if not held:
        return {"accuracy": None, "slides": []}
    images, labels = _labelled(request, record, held, CLASSIFIER_PATCHES // 4, context.store)
    return {"accuracy": round(accuracy(model, images, labels, context.device), 4), "slides": held}


def _labelled(
    request: ClusterRequest, cohort: CohortRecord, slides: list[str], limit: int, store: Store
) -> tuple[UInt8, Int64]:
    """Read about `limit` patches and their clusters, evenly over the slides."""
    images, labels = [], []
    rng = np.random.default_rng([request.seed, 5])
    for slide in slides:
        table = read_assignments(store, request.run, slide)
        chosen = np.sort(rng.permutation(table.num_rows)[: max(1, limit // len(slides))])
        rows = table.take(chosen)
        where = list(zip(rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True))
        if where:
            patches, places = read_patches(store, cohort, slide, where)
            images.append(patches)
            labels.append(np.asarray(rows["cluster"], np.int64)[places])
    if not images:
        raise InputError(f"slides {slides} have no patches to train the classifier on")
    return np.concatenate(images), np.concatenate(labels)
