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
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.contracts.base import Split
from shared.contracts.regions import (
    RegionSet,
    RegionSetSlide,
    region_index_key,
    region_set_key,
    region_table_key,
)
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


def put_region_set(store: Store, record: RegionSet) -> RegionSet:
    """Store the index and the record of a set whose tables and shards are in the store.

    Returns:
        The record, with a caution if regions of several splits have the same pixels. Their files
        may differ, as those of a picture that was saved again.
    """
    cautions = write_region_index(store, record)
    record = record.model_copy(update={"cautions": (*record.cautions, *cautions)})
    store.put_json(region_set_key(record.name), record)
    return record


def write_region_index(store: Store, record: RegionSet) -> list[str]:
    """Write the index of a set. None is written if tables of an earlier version state no places.

    Returns:
        A sentence on regions whose pixels are in several splits, if there are any.
    """
    parts = record.of_split("train", "val", "test")
    if not parts:
        return []

    def read(part: RegionSetSlide) -> pa.Table:
        return read_table(store, region_table_key(record.name, part.slide))

    first = read(parts[0])
    if not set(COLUMNS) <= set(first.column_names):
        return []
    pixels: list[NDArray[np.uint64]] = []
    schema = first.select(COLUMNS).schema.with_metadata({SHARDS: _digest(record)})
    with (
        ThreadPoolExecutor(READERS) as pool,
        store.writing(region_index_key(record.name)) as path,
        pq.ParquetWriter(path, schema, write_page_checksum=True) as writer,
    ):
        waiting: list[pa.Table] = []
        for start in range(0, len(parts), READERS):
            for table in pool.map(read, parts[start : start + READERS]):
                waiting.append(table.select(COLUMNS).cast(schema))
                pixels.append(_pixels(table))
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return _repeated(parts, pixels)


def _pixels(table: pa.Table) -> NDArray[np.uint64]:
    """Return the digests of regions' pixels, which tables of an earlier version do not state."""
    if "pixels" not in table.column_names:
        return np.zeros(0, np.uint64)
    return np.asarray(table["pixels"].drop_null(), np.uint64)


def _repeated(parts: list[RegionSetSlide], pixels: list[NDArray[np.uint64]]) -> list[str]:
    """Return a sentence on digests that slides of several splits share, if there are any."""
    slide = np.repeat(np.arange(len(parts)), [len(each) for each in pixels])
    every = np.concatenate(pixels)
    split = np.array([part.split for part in parts])[slide]
    count, named = 0, dict[str, None]()
    for here, there in combinations(get_args(Split), 2):
        left, right = slide[split == here], slide[split == there]
        _, at, to = np.intersect1d(every[split == here], every[split == there], return_indices=True)
        count += len(at)
        for a, b in zip(left[at].tolist(), right[to].tolist(), strict=True):
            named[f"{parts[a].slide} ({here}) and {parts[b].slide} ({there})"] = None
    if not count:
        return []
    some = "; ".join(list(named)[:3]) + ("; …" if len(named) > 3 else "")
    return [
        f"{count} regions have the same pixels in two splits ({some}): the figures are better than "
        "they would be on new tissue. Leave one of each out, or put both into one split."
    ]


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
