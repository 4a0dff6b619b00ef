"""The manifest of a dataset: a Parquet table with one row per image.

Each shard writes its own rows beside its tar; the last unit of the job joins them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from shared.arrays import Int64
from shared.contracts.synthesize import dataset_key
from shared.datasets.samples import Sample
from shared.jobs.records import READERS
from shared.storage import Store, sha256, sha256_file
from shared.storage.formats import table_bytes

MANIFEST = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int64()),
        ("shard", pa.string()),  # key in the store
        ("image", pa.string()),  # file name in the shard
        ("mask", pa.string()),
        ("map_region", pa.string()),
        ("map_slide", pa.string()),
        ("image_sha256", pa.string()),  # of the pixels, uint8 RGB, row by row
        ("mask_sha256", pa.string()),  # of the labels, uint8
        ("symmetry", pa.int8()),
        ("seed", pa.int64()),
        ("copied", pa.float64()),  # null: not measured, as the next
        ("distance", pa.float64()),
        ("refused", pa.int32()),
        ("crop_labels", pa.list_(pa.uint8())),
        ("crop_regions", pa.list_(pa.string())),
        ("crop_slides", pa.list_(pa.string())),
        ("fractions", pa.list_(pa.float32())),  # share of the image per class, background first
    ]
)

GROUP_ROWS = 65_536
"""Rows in a row group of the manifest."""

READ_AHEAD = 128
"""Number of shards whose rows are read ahead."""


def put_rows(store: Store, shard: str, samples: Sequence[Sample], counts: Sequence[Int64]) -> None:
    """Write the rows of one shard.

    Args:
        store: the object store.
        shard: key of the shard's tar.
        samples: the images of the shard.
        counts: number of pixels per class of each image, background first.
    """
    rows = [_row(*pair, shard) for pair in zip(samples, counts, strict=True)]
    store.put(_rows_key(shard), table_bytes(pa.Table.from_pylist(rows, schema=MANIFEST)))


def write_manifest(store: Store, dataset: str, shards: tuple[str, ...]) -> tuple[str, int]:
    """Join the rows of all shards; return the SHA-256 of the file, and the number of maps."""
    seen: set[str] = set()
    key = dataset_key(dataset, "manifest.parquet")

    def rows(shard: str) -> pa.Table:
        return pq.read_table(io.BytesIO(store.get(_rows_key(shard))), schema=MANIFEST)

    with store.writing(key) as path:
        with (
            pq.ParquetWriter(path, MANIFEST, write_page_checksum=True) as writer,
            ThreadPoolExecutor(READERS) as pool,
        ):
            held: list[pa.Table] = []
            for start in range(0, len(shards), READ_AHEAD):
                for table in pool.map(rows, shards[start : start + READ_AHEAD]):
                    seen.update(table["map_region"].to_pylist())
                    held.append(table)
                    if sum(each.num_rows for each in held) >= GROUP_ROWS:
                        joined = pa.concat_tables(held)
                        writer.write_table(joined.slice(0, GROUP_ROWS), row_group_size=GROUP_ROWS)
                        held = [joined.slice(GROUP_ROWS)]
            if any(each.num_rows for each in held):
                writer.write_table(pa.concat_tables(held), row_group_size=GROUP_ROWS)
        digest = sha256_file(path)
    return digest, len(seen)


def _rows_key(shard: str) -> str:
    return shard.removesuffix(".tar") + ".parquet"


def _row(sample: Sample, counts: Int64, shard: str) -> dict[str, object]:
    source = sample.provenance
    return {
        "key": source.key,
        "index": source.index,
        "shard": shard,
        "image": f"{source.key}.png",
        "mask": f"{source.key}.mask.png",
        "map_region": source.map_region,
        "map_slide": source.map_slide,
        "image_sha256": sha256(sample.image.tobytes()),
        "mask_sha256": sha256(sample.labels.tobytes()),
        "symmetry": source.symmetry,
        "seed": source.seed,
        "copied": source.copied,
        "distance": source.distance,
        "refused": source.refused,
        "crop_labels": [crop.label for crop in source.crops],
        "crop_regions": [crop.region for crop in source.crops],
        "crop_slides": [crop.slide for crop in source.crops],
        "fractions": (counts / counts.sum()).tolist(),
    }
