"""A small clustering of the texture slides, as the cluster stage leaves it in the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from services.cluster.regions import write_map
from shared.contracts.cluster import ClusterRecord, cluster_key, default_types, write_types
from shared.imaging.codec import encode_png
from shared.storage import Store
from shared.storage.formats import table_bytes
from tests.texture_slides import SPLITS, ingest_textures

STEP = 32
"""Pixels of the slide per pixel of the type map."""

TYPES = 3


def make_atlas(store: Store, folder: Path, run: str = "types", side: int = 512) -> None:
    """Ingest the slides of `SPLITS` as the cohort `textures`, and give each three types in bands.

    On each slide, the columns of patches are of type 1, 2, 3, one after the other.
    """
    ingest_textures(store, folder, side)
    count = side // STEP
    columns, rows = (grid.ravel() for grid in np.meshgrid(np.arange(count), np.arange(count)))
    clusters = (columns * TYPES // count).astype(np.uint8)
    for slide in SPLITS:
        table = pa.table({
            "x": columns * STEP, "y": rows * STEP, "cluster": clusters,
            "distance": np.linspace(0.1, 0.9, len(clusters), dtype=np.float32),
        })  # fmt: skip
        store.put(cluster_key(run, f"assignments/{slide}.parquet"), table_bytes(table))
        with store.writing(cluster_key(run, f"labels/{slide}.tif")) as path:
            write_map(path, (clusters + 1).reshape(count, count), float(STEP))
    counts = (np.bincount(clusters, minlength=TYPES) * len(SPLITS)).tolist()
    record = ClusterRecord(
        run=run, cohort="textures", encoder="embedded", k=TYPES, counts=tuple(counts),
        mean_distance=(0.1, 0.2, 0.3), classifier_accuracy=None,
    )  # fmt: skip
    store.put_json(cluster_key(run, "run.json"), record)
    store.put(cluster_key(run, "types.yaml"), write_types(default_types(TYPES)))
    for label in range(1, TYPES + 1):
        picture = np.full((96, 960, 3), 60 * label, np.uint8)
        store.put(cluster_key(run, f"examples/{label}.png"), encode_png(picture))
