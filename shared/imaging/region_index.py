"""One file that lists all regions of a set, with their places in its shards.

Without it, whoever opens a set asks the store for the table and the shard of each slide. Sets of
earlier versions have none.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.contracts.base import Split
from shared.contracts.regions import RegionSet, region_index_key, region_table_key
from shared.storage import ObjectNotFoundError, Store, sha256
from shared.storage.formats import read_table

SPANS = ("label_at", "label_bytes", "image_at", "image_bytes")
"""Columns of a region's place in its shard: offset and length of the label map and the image."""

COLUMNS = ["key", "slide", "fractions", *SPANS]
SHARDS = b"heterotissue.shards"
"""Name under which the file states the digest of the shards that it lists."""

ROW_GROUP = 65_536
READERS = 16
KEPT = 4
"""Indexes that a process keeps."""

_kept: OrderedDict[tuple[str, str], pa.Table] = OrderedDict()


def region_spans(tar: bytes | Path) -> dict[str, tuple[int, int, int, int]]:
    """Return the places of the regions of a shard: key → `SPANS`.

    Raises:
        tarfile.TarError, LookupError: the shard is damaged.
    """
    with (
        io.BytesIO(tar) if isinstance(tar, bytes) else tar.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as members,
    ):
        spans = {member.name: (member.offset_data, member.size) for member in members}
    keys = [name.removesuffix(".mask.png") for name in spans if name.endswith(".mask.png")]
    return {key: (*spans[f"{key}.mask.png"], *spans[f"{key}.png"]) for key in keys}


def write_region_index(store: Store, record: RegionSet) -> None:
    """Write the index of a set, whose record is stored after it.

    None is written if tables of an earlier version state no places.
    """
    slides = [part.slide for part in record.of_split("train", "val", "test")]
    if not slides:
        return

    def read(slide: str) -> pa.Table:
        return read_table(store, region_table_key(record.name, slide))

    first = read(slides[0])
    if not set(COLUMNS) <= set(first.column_names):
        return
    schema = first.select(COLUMNS).schema.with_metadata({SHARDS: _digest(record)})
    with (
        ThreadPoolExecutor(READERS) as pool,
        store.writing(region_index_key(record.name)) as path,
        pq.ParquetWriter(path, schema, write_page_checksum=True) as writer,
    ):
        waiting: list[pa.Table] = []
        for start in range(0, len(slides), READERS):
            for table in pool.map(read, slides[start : start + READERS]):
                waiting.append(table.select(COLUMNS).cast(schema))
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def read_region_index(
    store: Store, record: RegionSet, splits: tuple[Split, ...]
) -> pa.Table | None:
    """Return the rows (`COLUMNS`) of some splits of a set; None: it has no index, or an older one.

    The process keeps the index, so that a set is read once.
    """
    table = _whole(store, record)
    if table is None:
        return None
    slides = pa.array([part.slide for part in record.of_split(*splits)], pa.string())
    return table.filter(pc.is_in(table["slide"], slides))


def has_region_index(store: Store, record: RegionSet) -> bool:
    """Say whether `read_region_index` finds one."""
    return _whole(store, record) is not None


def _whole(store: Store, record: RegionSet) -> pa.Table | None:
    digest = _digest(record).decode()
    at = (store.url, digest)
    if at not in _kept:
        try:
            table = read_table(store, region_index_key(record.name), local=True)
        except ObjectNotFoundError:
            return None
        if (table.schema.metadata or {}).get(SHARDS) != digest.encode():
            return None
        if table["label_at"].null_count:  # of tables that state no places
            return None
        _kept[at] = table
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return _kept[at]


def _digest(record: RegionSet) -> bytes:
    """Return a digest of what the shards of a set hold."""
    parts = record.of_split("train", "val", "test")
    text = json.dumps([[part.slide, part.regions, part.sha256] for part in parts])
    return sha256(text.encode()).encode()
