"""The cluster stage: sample each slide → fit → assign each slide → classifier → gallery."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from numpy.typing import NDArray

from services.cluster.classifier import accuracy, train_classifier
from services.cluster.kmeans import assign, diverse_sample, hierarchical_kmeans
from services.cluster.types import classes_of, default_types, read_types, write_types
from shared.contracts.cluster import ClusterRecord, ClusterRequest, cluster_key
from shared.contracts.embed import features_key
from shared.contracts.ingest import CohortRecord, SlideRecord, cohort_key, slide_key
from shared.contracts.regions import RegionSet, RegionSetSlide, region_set_key
from shared.errors import InputError
from shared.imaging.label_map import LabelMap, write_label_map
from shared.imaging.region_cutting import cut_regions
from shared.imaging.regions import encode_png, table_bytes
from shared.imaging.sheet import sheet
from shared.imaging.slide import open_record
from shared.jobs import Context, Plan, Shard, Stage
from shared.storage import ObjectStore

FIT, CLASSIFY = "fit", "classifier"
STREAM = 16384
EXAMPLES = 10
CLASSIFIER_PATCHES = 4000


class ClusterStage(Stage[ClusterRequest]):
    """Features → tissue types."""

    name: ClassVar[str] = "cluster"
    request = ClusterRequest

    def plan(self, request: ClusterRequest, context: Context) -> Plan:
        record = _cohort(context.store, request)
        training, every = record.of_split("train"), sorted(record.splits)
        phases = [
            tuple(Shard(id=f"sample-{name}", args={"slide": name}) for name in training),
            (Shard(id=FIT),),
            tuple(Shard(id=f"assign-{name}", args={"slide": name}) for name in every),
        ]
        if request.classifier_steps:
            phases.append((Shard(id=CLASSIFY),))
        phases.append(tuple(Shard(id=f"regions-{name}", args={"slide": name}) for name in every))
        return Plan(phases=tuple(phases))

    def run(self, request: ClusterRequest, shard: Shard, context: Context) -> dict[str, Any]:
        torch.set_num_threads(context.threads)
        slide = str(shard.args.get("slide", ""))
        if shard.id.startswith("sample-"):
            return _sample(request, slide, context.store)
        if shard.id == FIT:
            return _fit(request, context.store)
        if shard.id.startswith("assign-"):
            return _assign(request, slide, context)
        if shard.id == CLASSIFY:
            return _classify(request, context)
        return _cut(request, slide, context.store)

    def finish(
        self, request: ClusterRequest, done: dict[str, dict[str, Any]], context: Context
    ) -> dict[str, Any]:
        store, record = context.store, _cohort(context.store, request)
        parts = [done[f"assign-{name}"] for name in sorted(record.splits)]
        counts = np.sum([part["counts"] for part in parts], 0)
        sums = np.sum([part["distances"] for part in parts], 0)
        made = ClusterRecord(
            run=request.run,
            cohort=request.cohort,
            encoder=request.encoder,
            k=request.k,
            counts=tuple(counts.tolist()),
            mean_distance=tuple(np.round(sums / np.maximum(counts, 1), 6).tolist()),
            classifier_accuracy=done.get(CLASSIFY, {}).get("accuracy"),
            classifier_slides=tuple(done.get(CLASSIFY, {}).get("slides", ())),
        )
        store.put_json(cluster_key(request.run, "run.json"), made)
        store.put(cluster_key(request.run, "gallery.png"), encode_png(_gallery(request, store)))
        classes, _ = classes_of(read_types(store, request.run, request.k))
        regions = RegionSet(
            name=request.run,
            cohort=request.cohort,
            labels=f"clusters/{request.run}",
            classes=classes,
            rule=request.regions,
            slides=tuple(
                RegionSetSlide(
                    slide=name,
                    split=record.splits[name],
                    regions=done[f"regions-{name}"]["regions"],
                    sha256=done[f"regions-{name}"]["sha256"],
                )
                for name in sorted(record.splits)
            ),
        )
        store.put_json(region_set_key(request.run), regions)
        return {
            "types": request.k,
            "classes": len(classes) - 1,
            "patches": int(counts.sum()),
            "regions": sum(part.regions for part in regions.slides),
            "classifier_accuracy": made.classifier_accuracy,
        }


def _cohort(store: ObjectStore, request: ClusterRequest) -> CohortRecord:
    return store.get_model(cohort_key(request.cohort), CohortRecord)


def _features(store: ObjectStore, request: ClusterRequest, slide: str) -> Path:
    return store.local(features_key(request.encoder, request.cohort, slide))


def _sample(request: ClusterRequest, slide: str, store: ObjectStore) -> dict[str, Any]:
    with h5py.File(_features(store, request, slide), "r") as file:
        features = np.asarray(file["features"], np.float32)
    chosen = diverse_sample(features, request.sample_per_slide, request.seed)
    body = io.BytesIO()
    np.save(body, features[chosen])
    store.put(cluster_key(request.run, f"samples/{slide}.npy"), body.getvalue())
    return {"sampled": len(chosen)}


def _fit(request: ClusterRequest, store: ObjectStore) -> dict[str, Any]:
    slides = _cohort(store, request).of_split("train")
    keys = [cluster_key(request.run, f"samples/{slide}.npy") for slide in slides]
    features = np.concatenate([_load(store, key) for key in keys])
    first = request.first_k or max(2, request.k // 2)
    centroids = hierarchical_kmeans(features, request.k, first, request.iterations, request.seed)
    body = io.BytesIO()
    np.save(body, centroids)
    store.put(cluster_key(request.run, "centroids.npy"), body.getvalue())
    if not store.exists(cluster_key(request.run, "types.yaml")):
        store.put(cluster_key(request.run, "types.yaml"), write_types(default_types(request.k)))
    return {"samples": len(features)}


def _load(store: ObjectStore, key: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.load(io.BytesIO(store.get(key)), allow_pickle=False)
    return array


def _assign(request: ClusterRequest, slide: str, context: Context) -> dict[str, Any]:
    """Stream a slide's features past the centroids; memory does not grow with their number."""
    store = context.store
    centroids = _load(store, cluster_key(request.run, "centroids.npy"))
    found: list[NDArray[np.uint8]] = []
    distances: list[NDArray[np.float32]] = []
    with h5py.File(_features(store, request, slide), "r") as file:
        coords = np.asarray(file["coords"], np.int64).reshape(-1, 2)
        features = file["features"]
        for start in range(0, len(coords), STREAM):
            part = np.asarray(features[start : start + STREAM], np.float32)
            label, distance = assign(part, centroids)
            found.append(label.astype(np.uint8))
            distances.append(distance)
            context.progress(start + len(part), len(coords), slide)
    clusters = np.concatenate(found) if found else np.zeros(0, np.uint8)
    spread = np.concatenate(distances) if distances else np.zeros(0, np.float32)
    table = pa.table(
        {"x": coords[:, 0], "y": coords[:, 1], "cluster": clusters, "distance": spread}
    )
    store.put(cluster_key(request.run, f"assignments/{slide}.parquet"), table_bytes(table))
    record = store.get_model(slide_key(slide), SlideRecord)
    grid = _cohort(store, request).patches
    labels = type_map(coords, clusters, record, grid.size, grid.stride, grid.mpp)
    if request.smoothing:
        labels = majority(labels, request.k, request.smoothing)
    with store.writing(cluster_key(request.run, f"labels/{slide}.tif")) as path:
        height, width = labels.shape
        strips = (labels[top : top + 512] for top in range(0, height, 512))
        write_label_map(path, strips, width, height, grid.stride * grid.mpp)
    return {
        "counts": np.bincount(clusters, minlength=request.k).tolist(),
        "distances": np.bincount(clusters, spread, request.k).round(4).tolist(),
    }


def type_map(
    coords: NDArray[np.int64],
    clusters: NDArray[np.uint8],
    record: SlideRecord,
    size: int,
    stride: int,
    mpp: float,
) -> NDArray[np.uint8]:
    """Lay patch clusters out as a map of one pixel per stride: cluster + 1, 0 without tissue.

    A pixel covers the middle of its patch, so the map is shifted by half the overlap.
    """
    step = stride * mpp / record.mpp
    shape = (
        max(1, int(np.ceil(record.height * record.mpp_y / (stride * mpp)))),
        max(1, int(np.ceil(record.width * record.mpp / (stride * mpp)))),
    )
    labels = np.zeros(shape, np.uint8)
    shift = (size - stride) * mpp / record.mpp / 2
    columns = np.clip(np.round((coords[:, 0] + shift) / step), 0, shape[1] - 1).astype(int)
    rows = np.clip(np.round((coords[:, 1] + shift) / step), 0, shape[0] - 1).astype(int)
    labels[rows, columns] = clusters + 1
    return labels


def majority(labels: NDArray[np.uint8], k: int, radius: int) -> NDArray[np.uint8]:
    """Replace each type by the most frequent one around it; background stays as it is."""
    size = 2 * radius + 1
    best = np.zeros(labels.shape, np.float32)
    out = labels.copy()
    for label in range(1, k + 1):
        mask = (labels == label).astype(np.float32)
        if not mask.any():
            continue
        votes = cv2.boxFilter(mask, -1, (size, size), normalize=False) + 0.5 * mask
        wins = (votes > best) & (labels > 0)
        out[wins] = label
        best[wins] = votes[wins]
    return out


def _patches(
    request: ClusterRequest, slide: str, rows: list[tuple[int, int]], store: ObjectStore
) -> NDArray[np.uint8]:
    """Read patches of a slide as uint8 (N, 64, 64, 3)."""
    grid = _cohort(store, request).patches
    mpp = grid.size * grid.mpp / 64
    with open_record(store, slide) as (opened, _):
        return np.stack([opened.read(x, y, (64, 64), mpp) for x, y in rows])


def _classify(request: ClusterRequest, context: Context) -> dict[str, Any]:
    store, record = context.store, _cohort(context.store, request)
    held = record.of_split("val", "test")
    training = _labelled(request, record.of_split("train"), CLASSIFIER_PATCHES, context)
    model = train_classifier(
        *training, request.k, request.classifier_steps, request.seed, context.device,
        context.progress,
    )  # fmt: skip
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    store.put(cluster_key(request.run, "classifier.safetensors"), safetensors.torch.save(weights))
    if not held:
        return {"accuracy": None, "slides": []}
    images, labels = _labelled(request, held, CLASSIFIER_PATCHES // 4, context)
    return {"accuracy": round(accuracy(model, images, labels, context.device), 4), "slides": held}


def _labelled(
    request: ClusterRequest, slides: list[str], limit: int, context: Context
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read at most `limit` patches with their clusters, evenly over the slides."""
    images, labels = [], []
    rng = np.random.default_rng([request.seed, 5])
    for slide in slides:
        table = _assignments(request, slide, context.store)
        chosen = np.sort(rng.permutation(table.num_rows)[: max(1, limit // len(slides))])
        rows = table.take(chosen)
        where = list(zip(rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True))
        if where:
            images.append(_patches(request, slide, where, context.store))
            labels.append(np.asarray(rows["cluster"], np.int64))
    if not images:
        raise InputError(f"slides {slides} have no patches to train the classifier on")
    return np.concatenate(images), np.concatenate(labels)


def _assignments(request: ClusterRequest, slide: str, store: ObjectStore) -> pa.Table:
    return pq.read_table(store.local(cluster_key(request.run, f"assignments/{slide}.parquet")))


def _cut(request: ClusterRequest, slide: str, store: ObjectStore) -> dict[str, Any]:
    """Cut regions along the type map, with types named and merged as the types file says."""
    types = read_types(store, request.run, request.k)
    classes, table = classes_of(types)
    key = cluster_key(request.run, f"labels/{slide}.tif")
    with (
        LabelMap(store.local(key)) as raw,
        store.writing(cluster_key(request.run, f"classes/{slide}.tif")) as path,
    ):
        labels = table[raw.whole()]
        write_label_map(
            path,
            (labels[top : top + 512] for top in range(0, raw.height, 512)),
            raw.width,
            raw.height,
            raw.mpp,
        )
    merged = store.local(cluster_key(request.run, f"classes/{slide}.tif"))
    with open_record(store, slide) as (opened, _), LabelMap(merged) as merged_labels:
        count, digest = cut_regions(
            store, request.run, slide, opened, merged_labels, len(classes), request.regions
        )
    return {"regions": count, "sha256": digest}


def _gallery(request: ClusterRequest, store: ObjectStore) -> NDArray[np.uint8]:
    """Draw each type's patches nearest to its centroid, from as many slides as there are."""
    types = read_types(store, request.run, request.k)
    candidates: dict[int, list[tuple[float, str, int, int]]] = {}
    for slide in sorted(_cohort(store, request).splits):
        table = _assignments(request, slide, store)
        clusters, distance = np.asarray(table["cluster"]), np.asarray(table["distance"])
        for cluster in np.unique(clusters).tolist():
            members = np.flatnonzero(clusters == cluster)
            for i in members[np.argsort(distance[members], kind="stable")[:EXAMPLES]].tolist():
                spot = (float(distance[i]), slide, table["x"][i].as_py(), table["y"][i].as_py())
                candidates.setdefault(cluster, []).append(spot)
    rows, names = [], []
    for cluster in sorted(candidates):
        by_slide: dict[str, list[tuple[float, str, int, int]]] = {}
        for spot in sorted(candidates[cluster]):
            by_slide.setdefault(spot[1], []).append(spot)
        turns = sorted(
            (rank, *spot) for spots in by_slide.values() for rank, spot in enumerate(spots)
        )[:EXAMPLES]
        images = [_patches(request, slide, [(x, y)], store)[0] for _, _, slide, x, y in turns]
        rows.append([enlarge_image(image) for image in images])
        names.append(types[cluster + 1].name)
    return sheet(rows, names)


def enlarge_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge an image for looking at."""
    size = (image.shape[1] * 3 // 2, image.shape[0] * 3 // 2)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
