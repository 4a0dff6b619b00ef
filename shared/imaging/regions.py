"""Regions as pixels: choosing windows by the paper's rule, and the shards that keep them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.contracts.base import Split
from shared.contracts.regions import (
    RegionRule,
    RegionSet,
    region_set_key,
    region_tar_key,
)
from shared.errors import InputError
from shared.storage import ObjectStore

UInt8 = NDArray[np.uint8]

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


@dataclass(frozen=True)
class Window:
    """A window that the rule keeps: corner in label-map pixels and what it holds."""

    x: int
    y: int
    fractions: tuple[float, ...]
    entropy: float


def class_entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy in bits of class shares along the last axis: H(r) = -Σ p_i log2 p_i."""
    safe = np.where(shares > 0, shares, 1.0)
    entropy: NDArray[np.float64] = -(shares * np.log2(safe)).sum(-1)
    return entropy


def choose_windows(
    labels: UInt8, classes: int, side: int, stride: int, rule: RegionRule
) -> list[Window]:
    """Choose the windows of a label map that the rule keeps.

    Args:
        labels: uint8 (height, width) label map of a slide, at any resolution.
        classes: number of classes, background included.
        side: side of a window in label-map pixels.
        stride: pixels between the corners of neighbouring windows.
        rule: bounds, background handling and cap.

    Returns:
        At most `rule.max_per_slide` windows, the most diverse (entropy) where the
        cap bites, ordered by row and column.
    """
    height, width = labels.shape
    if height < side or width < side:
        return []
    ys = np.arange(0, height - side + 1, stride)
    xs = np.arange(0, width - side + 1, stride)
    fractions = np.empty((len(ys), len(xs), classes))
    for index in range(classes):
        sums = cv2.integral((labels == index).astype(np.uint8))
        lower, upper = sums[ys][:, xs], sums[ys + side][:, xs + side]
        area = upper - sums[ys][:, xs + side] - sums[ys + side][:, xs] + lower
        fractions[..., index] = area / side**2
    tissue = 1 - fractions[..., 0]
    if rule.count_background:
        shares = fractions
    else:
        shares = fractions.copy()
        shares[..., 0] = 0
        shares /= np.maximum(tissue, 1e-9)[..., None]
    between = (shares >= rule.low - 1e-9) & (shares <= rule.high + 1e-9)
    kept = (between.sum(-1) >= rule.min_classes) & (tissue >= rule.min_tissue)
    entropy = class_entropy(shares)
    rows, columns = np.nonzero(kept)
    if len(rows) > rule.max_per_slide:
        ties = np.random.default_rng(rule.seed).random(len(rows))
        best = np.lexsort((ties, -entropy[rows, columns]))[: rule.max_per_slide]
        rows, columns = rows[np.sort(best)], columns[np.sort(best)]
    return [
        Window(
            int(xs[column]),
            int(ys[row]),
            tuple(fractions[row, column].tolist()),
            float(entropy[row, column]),
        )
        for row, column in zip(rows, columns, strict=True)
    ]


def encode_png(array: UInt8) -> bytes:
    """Encode uint8 (h, w) or RGB (h, w, 3) as PNG: the same array gives the same bytes."""
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise InputError(f"cannot write an array of shape {array.shape} as PNG")
    return data.tobytes()


def decode_png(data: bytes) -> UInt8:
    """Decode a PNG to uint8 RGB (h, w, 3), or (h, w) where it has one channel."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise InputError("an image in a shard is broken: make the shard again")
    return np.asarray(
        cv2.cvtColor(array, cv2.COLOR_BGR2RGB) if array.ndim == 3 else array, np.uint8
    )


def pack_tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Pack named bytes as an uncompressed tar (a WebDataset shard) without times or owners."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(data))
    return body.getvalue()


def unpack_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of every file of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


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


def table_bytes(table: pa.Table) -> bytes:
    """Write a table as Parquet: the same table gives the same bytes."""
    body = io.BytesIO()
    pq.write_table(table, body)
    return body.getvalue()


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
