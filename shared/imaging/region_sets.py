"""Region sets: the shards and tables of training regions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared.arrays import UInt8
from shared.contracts.base import Split
from shared.contracts.regions import RegionSet, region_set_key, region_table_key, region_tar_key
from shared.errors import InputError
from shared.imaging.codec import decode_png, encode_png
from shared.storage import Store
from shared.storage.formats import pack_tar, table_bytes

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
    ]
)


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


def region_table(rows: list[dict[str, object]]) -> bytes:
    """Write region rows (see `COLUMNS`) as Parquet."""
    return table_bytes(pa.Table.from_pylist(rows, schema=COLUMNS))


def classes_without_regions(store: Store, record: RegionSet, *splits: Split) -> list[str]:
    """Return the names of the classes of tissue that no region of some splits has."""
    held = np.zeros(len(record.classes), bool)
    for part in record.of_split(*splits):
        table = io.BytesIO(store.get(region_table_key(record.name, part.slide)))
        shares = pq.read_table(table, columns=["fractions"])["fractions"].to_pylist()
        held |= (np.asarray(shares) > 0).any(0)
    classes = record.classes
    return [item.name for item in classes.items[classes.first :] if not held[item.index]]


class RegionIndex:
    """Random access to the regions of a set, without holding them in memory.

    Shards are plain tars, so reading a region takes two reads at known offsets of a local file.

    Attributes:
        keys: key of each region, slide by slide.
        slides: slide of each region, in the same order.

    Raises:
        InputError: a shard is damaged, or has other regions than the record says.
    """

    def __init__(self, store: Store, record: RegionSet, *splits: Split) -> None:
        self.record = record
        self._entries: list[tuple[str, str, Path, tuple[int, int], tuple[int, int]]] = []
        for part in record.of_split(*splits):
            tar_key = region_tar_key(record.name, part.slide)
            path = store.local(tar_key)
            try:
                with tarfile.open(path, mode="r:") as tar:
                    spans = {member.name: (member.offset_data, member.size) for member in tar}
                own = [
                    (name.removesuffix(".mask.png"), part.slide, path, span,
                     spans[name.removesuffix(".mask.png") + ".png"])
                    for name, span in spans.items()
                    if name.endswith(".mask.png")
                ]  # fmt: skip
            except (tarfile.TarError, LookupError) as error:
                raise _damaged(tar_key) from error
            if len(own) != part.regions:
                raise _damaged(tar_key)
            self._entries += own
        self.keys = [entry[0] for entry in self._entries]
        self.slides = [entry[1] for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Region]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Region:
        key, slide, path, labels, image = self._entries[index]
        with path.open("rb") as file:
            file.seek(labels[0])
            mask = decode_png(file.read(labels[1]))
            file.seek(image[0])
            return Region(key, slide, decode_png(file.read(image[1])), mask)

    def labels(self, index: int) -> UInt8:
        """Read a region's label map alone, uint8 (size, size)."""
        path, (start, size) = self._entries[index][2:4]
        with path.open("rb") as file:
            file.seek(start)
            return decode_png(file.read(size))


def _damaged(key: str) -> InputError:
    return InputError(
        f"{key} of the store is damaged or incomplete: run the command that made it again, with "
        "--fresh"
    )


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
