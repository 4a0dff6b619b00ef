"""Region sets: the shards and tables of training regions."""

from __future__ import annotations

import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared.arrays import Float32, Int64, UInt8
from shared.contracts.base import Split
from shared.contracts.regions import (
    RegionRule,
    RegionSet,
    region_set_key,
    region_table_key,
    region_tar_key,
)
from shared.errors import InputError
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.region_index import SPANS, read_region_index, region_spans
from shared.imaging.windows import Window
from shared.storage import DamagedObjectError, Store, checked_file, sha256
from shared.storage.formats import pack_tar, read_table, table_bytes

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("slide", pa.string()),
        ("x", pa.int64()),  # upper left corner, level-0 pixels
        ("y", pa.int64()),
        ("size", pa.int32()),  # pixels at mpp
        ("mpp", pa.float64()),
        ("tissue", pa.float32()),  # labelled share of the window
        ("fractions", pa.list_(pa.float32())),  # share of the window per class, background first
        ("entropy", pa.float32()),  # Shannon entropy of the class shares, bits
        ("pixels", pa.uint64()),  # digest of the pixels; null in older sets
        *((name, pa.int64()) for name in SPANS),  # place in the shard, bytes; null in older sets
    ]
)


RegionRow = dict[str, object]
"""A row of a table of regions."""

OPEN_SHARDS = 128
"""Shards that an index keeps on disk; each takes a file handle where the store has a cache."""


@dataclass(frozen=True)
class Region:
    """One region: its pixels and its label map.

    Attributes:
        key: unique within the set; starts with `<slide>_` and ends with `_<x>_<y>`.
        slide: name of the slide.
        image: uint8 RGB (size, size, 3).
        labels: uint8 (size, size), class indices.
    """

    key: str
    slide: str
    image: UInt8
    labels: UInt8


def pack_regions(regions: Iterable[Region]) -> bytes:
    """Pack regions as a WebDataset shard of lossless PNGs."""

    def members() -> Iterator[tuple[str, bytes]]:
        for region in regions:
            yield f"{region.key}.mask.png", encode_png(region.labels)
            yield f"{region.key}.png", encode_png(region.image)

    return pack_tar(members())


def load_region_set(store: Store, name: str) -> RegionSet:
    """Return the record of a region set. Raises `ObjectNotFoundError`."""
    return store.get_model(region_set_key(name), RegionSet)


def region_table(rows: list[RegionRow]) -> bytes:
    """Write region rows (see `COLUMNS`) as Parquet."""
    return table_bytes(pa.Table.from_pylist(rows, schema=COLUMNS))


def region_row(region: Region, x: int, y: int, window: Window, rule: RegionRule) -> RegionRow:
    """Return `COLUMNS` of a region, without `SPANS`.

    Args:
        region: the region.
        x, y: its upper left corner, level-0 pixels.
        window: the window of the label map that was chosen.
        rule: the rule that chose it.
    """
    return {
        "key": region.key,
        "slide": region.slide,
        "x": x,
        "y": y,
        "size": rule.size,
        "mpp": rule.mpp,
        "tissue": 1 - window.fractions[0],
        "fractions": window.fractions,
        "entropy": window.entropy,
        "pixels": int(sha256(region.image.tobytes())[:16], 16),
    }


def put_regions(store: Store, name: str, slide: str, rows: list[RegionRow], tar: bytes) -> None:
    """Store the shard of a slide's regions, and their table.

    Args:
        store: receives them.
        name: name of the region set.
        slide: name of the slide.
        rows: `region_row` of each region.
        tar: the shard.
    """
    spans = region_spans(tar)
    rows = [row | dict(zip(SPANS, spans[str(row["key"])], strict=True)) for row in rows]
    store.put(region_tar_key(name, slide), tar)
    store.put(region_table_key(name, slide), region_table(rows))


def region_tables(store: Store, record: RegionSet, splits: tuple[Split, ...]) -> Iterator[pa.Table]:
    """Yield the rows of some splits, at least `key`, `slide` and `fractions`, slide by slide."""
    rows = read_region_index(store, record, splits)
    if rows is not None:
        yield rows
        return
    for part in record.of_split(*splits):
        key = region_table_key(record.name, part.slide)
        yield read_table(store, key, ["key", "slide", "fractions"])


def shares_of(rows: pa.Table) -> Float32:
    """Return the share of each class in regions, float32 (n, classes), without a copy of many."""
    shares = rows["fractions"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(shares, np.float32).reshape(len(rows), -1)


def classes_without_regions(store: Store, record: RegionSet, *splits: Split) -> list[str]:
    """Return the names of the classes of tissue that no region of some splits has."""
    held = np.zeros(len(record.classes), bool)
    for rows in region_tables(store, record, splits):
        held |= (shares_of(rows) > 0).any(0)
    classes = record.classes
    return [item.name for item in classes.items[classes.first :] if not held[item.index]]


class RegionIndex:
    """Random access to the regions of a set, without holding them in memory.

    Shards are plain tars, so reading a region takes two reads at known offsets of a local file.

    Attributes:
        keys: key of each region, slide by slide.
        slides: slide of each region, in the same order.

    Raises:
        DamagedObjectError: a shard is not as the record says. Where the set has an index, this is
            found when a region of the shard is read.
    """

    def __init__(self, store: Store, record: RegionSet, *splits: Split) -> None:
        self.record, self._store = record, store
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self._digests = {part.slide: part.sha256 for part in record.slides}
        self.keys: list[str] = []
        self.slides: list[str] = []
        self._spans: Int64 = np.zeros((0, len(SPANS)), np.int64)
        index = read_region_index(store, record, splits)
        if index is not None:
            self.keys = index["key"].to_pylist()
            self.slides = index["slide"].to_pylist()
            self._spans = np.stack([np.asarray(index[name], np.int64) for name in SPANS], 1)
            return
        spans_of: list[tuple[int, ...]] = []
        for part in record.of_split(*splits):
            try:
                spans = region_spans(self._shard(part.slide))
            except (tarfile.TarError, LookupError) as error:
                raise self._damaged(part.slide) from error
            if len(spans) != part.regions:
                raise self._damaged(part.slide)
            self.keys += spans
            self.slides += [part.slide] * len(spans)
            spans_of += spans.values()
        self._spans = np.array(spans_of, np.int64).reshape(-1, len(SPANS))

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Region]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Region:
        key, slide = self.keys[index], self.slides[index]
        label_at, label_bytes, image_at, image_bytes = self._spans[index].tolist()
        with self._shard(slide).open("rb") as file:
            file.seek(label_at)
            labels = file.read(label_bytes)
            file.seek(image_at)
            image = file.read(image_bytes)
        if (len(labels), len(image)) != (label_bytes, image_bytes):
            raise self._damaged(slide)
        return Region(key, slide, decode_png(image), decode_png(labels))

    def labels(self, index: int) -> UInt8:
        """Read a region's label map alone, uint8 (size, size)."""
        start, size = self._spans[index, :2].tolist()
        with self._shard(self.slides[index]).open("rb") as file:
            file.seek(start)
            labels = file.read(size)
        if len(labels) != size:
            raise self._damaged(self.slides[index])
        return decode_png(labels)

    def _shard(self, slide: str) -> Path:
        """Return the local file of a slide's shard; a store's cache keeps the last ones."""
        if slide not in self._paths:
            key = region_tar_key(self.record.name, slide)
            self._paths[slide] = checked_file(self._store, key, self._digests[slide])
            if len(self._paths) > OPEN_SHARDS:
                self._paths.popitem(last=False)
        self._paths.move_to_end(slide)
        return self._paths[slide]

    def _damaged(self, slide: str) -> DamagedObjectError:
        key = region_tar_key(self.record.name, slide)
        return DamagedObjectError(self._store, key, "it is not as it was made")


class RegionNotFoundError(InputError):
    """A region set holds no region under the key."""


def read_region(store: Store, record: RegionSet, key: str) -> Region:
    """Read a region of a set by its key, from any split. Raises `RegionNotFoundError`."""
    # Open only the shards of slides whose name the key starts with.
    own = tuple(part for part in record.slides if key.startswith(f"{part.slide}_"))
    one = record.model_copy(update={"slides": own})
    index = RegionIndex(store, one, "train", "val", "test")
    if key not in index.keys:
        raise RegionNotFoundError(f"region set {record.name!r} has no region {key!r}")
    return index[index.keys.index(key)]
