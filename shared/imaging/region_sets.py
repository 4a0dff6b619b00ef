"""Region sets: the shards and tables that keep training regions."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from shared.arrays import UInt8
from shared.contracts.base import Split
from shared.contracts.regions import RegionSet, region_set_key, region_tar_key
from shared.imaging.codec import decode_png, encode_png
from shared.storage import ObjectStore
from shared.storage.formats import pack_tar, table_bytes, unpack_tar

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("slide", pa.string()),
        ("x", pa.int64()),  # level-0 pixels
        ("y", pa.int64()),
        ("size", pa.int32()),  # pixels at mpp
        ("mpp", pa.float64()),
        ("tissue", pa.float32()),  # labelled share of the window
        ("fractions", pa.list_(pa.float32())),  # share of the window per class, background first
        ("entropy", pa.float32()),  # of the tissue's classes, bits
    ]
)


@dataclass(frozen=True)
class Region:
    """One region: its pixels and its label map.

    Attributes:
        key: unique within its set, `<slide>_<x>_<y>`.
        slide: name of its slide.
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


def unpack_regions(data: bytes, slide: str) -> Iterator[Region]:
    """Yield the regions of a shard in their order."""
    labels: dict[str, UInt8] = {}
    for name, body in unpack_tar(data):
        if name.endswith(".mask.png"):
            labels[name.removesuffix(".mask.png")] = decode_png(body)
        else:
            key = name.removesuffix(".png")
            yield Region(key, slide, decode_png(body), labels.pop(key))


def load_region_set(store: ObjectStore, name: str) -> RegionSet:
    """Return the record of a region set."""
    return store.get_model(region_set_key(name), RegionSet)


def read_regions(store: ObjectStore, record: RegionSet, *splits: Split) -> Iterator[Region]:
    """Yield all regions of the given splits, slide by slide."""
    for part in record.of_split(*splits):
        yield from unpack_regions(store.get(region_tar_key(record.name, part.slide)), part.slide)


def region_table(rows: list[dict[str, object]]) -> bytes:
    """Write region rows (see `COLUMNS`) as Parquet."""
    return table_bytes(pa.Table.from_pylist(rows, schema=COLUMNS))


class RegionIndex:
    """Random access to the regions of a set, without holding them in memory.

    Shards are plain tars, so a region is two reads at known offsets of a local file.

    Attributes:
        keys: key of every region.
        slides: slide of every region.
    """

    def __init__(self, store: ObjectStore, record: RegionSet, *splits: Split) -> None:
        self.record = record
        self._entries: list[tuple[str, str, Path, tuple[int, int], tuple[int, int]]] = []
        for part in record.of_split(*splits):
            path = store.local(region_tar_key(record.name, part.slide))
            with tarfile.open(path, mode="r:") as tar:
                spans = {member.name: (member.offset_data, member.size) for member in tar}
            self._entries += [
                (name.removesuffix(".mask.png"), part.slide, path, span,
                 spans[name.removesuffix(".mask.png") + ".png"])
                for name, span in spans.items()
                if name.endswith(".mask.png")
            ]  # fmt: skip
        self.keys = [entry[0] for entry in self._entries]
        self.slides = [entry[1] for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Region:
        key, slide, path, labels, image = self._entries[index]
        with path.open("rb") as file:
            file.seek(labels[0])
            mask = decode_png(file.read(labels[1]))
            file.seek(image[0])
            return Region(key, slide, decode_png(file.read(image[1])), mask)
