"""Samples of synthetic datasets, which `synthesize` writes, and `evaluate` and `gateway` read."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from shared.arrays import UInt8
from shared.contracts.base import Classes, Split
from shared.contracts.models import ModelRecord
from shared.contracts.regions import RegionSet
from shared.contracts.synthesize import DatasetRecord, Provenance, dataset_key
from shared.datasets.pseudonyms import reveal
from shared.diffusion.crops import Crop
from shared.errors import InputError
from shared.imaging.codec import decode_png, encode_png
from shared.imaging.marks import Mark, mark_png
from shared.imaging.region_sets import RegionIndex
from shared.storage import DamagedObjectError, Store, checked_bytes, checked_file
from shared.storage.formats import read_table, unpack_tar


class Sample(NamedTuple):
    """One synthetic image with its label map.

    Attributes:
        image: uint8 RGB (size, size, 3).
        labels: uint8 (size, size), the label map.
        provenance: sources of the map and the crops; its `key` names the sample.
    """

    image: UInt8
    labels: UInt8
    provenance: Provenance

    @property
    def mark(self) -> Mark:
        """What the PNGs of the image and of its label map say of themselves."""
        return Mark(self.provenance.model, self.provenance.dataset, self.provenance.key)


def shard_members(samples: Sequence[Sample]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a WebDataset shard."""
    for sample in samples:
        key = sample.provenance.key
        yield f"{key}.json", sample.provenance.model_dump_json(indent=1).encode()
        yield f"{key}.mask.png", mask_png(sample)
        yield f"{key}.png", image_png(sample)


def image_png(sample: Sample) -> bytes:
    """Encode an image as PNG, marked as synthetic."""
    return mark_png(encode_png(sample.image), sample.mark)


def mask_png(sample: Sample) -> bytes:
    """Encode a label map as PNG, marked like its image."""
    return mark_png(encode_png(sample.labels), sample.mark)


def read_shard(data: bytes) -> Iterator[Sample]:
    """Yield the samples of a shard in their order."""
    yield from read_members(unpack_tar(data))


def read_members(members: Iterable[tuple[str, bytes]]) -> Iterator[Sample]:
    """Yield the samples of a shard's files, in the order of `shard_members`."""
    files: dict[str, bytes] = {}
    for name, body in members:
        files[name] = body
        if name.endswith(".png") and not name.endswith(".mask.png"):
            key = name.removesuffix(".png")
            yield Sample(
                decode_png(body),
                decode_png(files.pop(f"{key}.mask.png")),
                Provenance.model_validate_json(files.pop(f"{key}.json")),
            )
            files.clear()


def load_dataset(store: Store, dataset: str) -> DatasetRecord:
    """Return a dataset's record. Raises `ObjectNotFoundError`."""
    return store.get_model(dataset_key(dataset, "dataset.json"), DatasetRecord)


def read_shards(store: Store, record: DatasetRecord) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of each shard of a dataset.

    Raises:
        ObjectNotFoundError: the store does not hold a shard.
        DamagedObjectError: a shard is not as it was made.
    """
    for shard, digest in itertools.zip_longest(record.shards, record.digests):
        yield shard, checked_bytes(store, shard, digest)


def read_manifest(
    store: Store, record: DatasetRecord, columns: list[str] | None = None
) -> pa.Table:
    """Read a dataset's manifest, with a row for each image.

    Args:
        store: holds the dataset.
        record: the dataset.
        columns: the columns to read; None: all.

    Raises:
        ObjectNotFoundError: the store does not hold it.
        DamagedObjectError: it is not as it was made.
    """
    key = dataset_key(record.dataset, "manifest.parquet")
    checked_file(store, key, record.manifest)
    return read_table(store, key, columns, local=True)


class DatasetIndex:
    """Random access to the samples of a dataset, without holding them in memory.

    Args:
        store: holds the shards.
        record: the dataset.
        names: returns pseudonym → name, to see names of slides and regions instead of pseudonyms;
            called at the first look at a sample.

    Raises:
        DamagedObjectError: a shard is not as it was made.
    """

    def __init__(
        self,
        store: Store,
        record: DatasetRecord,
        names: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._read_names = names
        self._entries = []
        for shard, digest in itertools.zip_longest(record.shards, record.digests):
            path = checked_file(store, shard, digest)
            try:
                with tarfile.open(path, mode="r:") as tar:
                    spans = {member.name: (member.offset_data, member.size) for member in tar}
                for name in spans:
                    if name.endswith(".json"):
                        key = name.removesuffix(".json")
                        parts = (name, f"{key}.mask.png", f"{key}.png")
                        self._entries.append((path, [spans[part] for part in parts]))
            except (tarfile.TarError, KeyError) as error:
                raise DamagedObjectError(store, shard, str(error)) from error
        if len(self._entries) != record.images:
            key = dataset_key(record.dataset, "shards")
            raise DamagedObjectError(
                store, key, f"{len(self._entries)} of {record.images} images are there"
            )

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return self._read_names() if self._read_names else {}

    def __len__(self) -> int:
        return len(self._entries)

    def provenance(self, index: int) -> Provenance:
        """Read the provenance of a sample, without its pixels."""
        path, spans = self._entries[index]
        with path.open("rb") as file:
            file.seek(spans[0][0])
            return reveal(Provenance.model_validate_json(file.read(spans[0][1])), self._names)

    def __getitem__(self, index: int) -> Sample:
        path, spans = self._entries[index]
        bodies = []
        with path.open("rb") as file:
            for offset, size in spans:
                file.seek(offset)
                bodies.append(file.read(size))
        provenance = reveal(Provenance.model_validate_json(bodies[0]), self._names)
        return Sample(decode_png(bodies[2]), decode_png(bodies[1]), provenance)


def relabel(own: Classes, wanted: Classes, whose: str) -> UInt8:
    """Return a table uint8 (256,) that maps the labels of `own` to those of `wanted`, by name.

    Args:
        own: classes of the labels that are mapped.
        wanted: classes of the model.
        whose: owner of `own`, for the message.

    Raises:
        InputError: `own` has a class that `wanted` lacks, or gives class 0 another meaning.
    """
    unknown = [name for name in own.names[1:] if name not in wanted.names]
    if unknown:
        raise InputError(
            f"{whose} has classes {unknown} that the model does not know; it knows "
            f"{wanted.names[1:]}: take a region set with these classes, or train on this one"
        )
    if own.exhaustive != wanted.exhaustive:
        meaning = ["is glass or unlabelled", "is other tissue"]
        raise InputError(
            f"class 0 of {whose} {meaning[own.exhaustive]}, but to the model it "
            f"{meaning[wanted.exhaustive]}: take a region set that is labelled as the model's was"
        )
    table = np.zeros(256, np.uint8)
    for item in own.items[1:]:
        table[item.index] = wanted.index(item.name)
    return table


def check_fit(record: RegionSet, model: ModelRecord) -> UInt8:
    """Check that the regions of a set can give maps or crops for a model.

    Returns:
        A table uint8 (256,) that maps the set's labels to the model's.

    Raises:
        InputError: the set does not fit the model (classes, size, resolution).
    """
    table = relabel(record.classes, model.classes, f"region set {record.name!r}")
    if record.rule.size < model.size:
        raise InputError(
            f"regions of {record.name!r} are {record.rule.size} px, smaller than the model's "
            f"{model.size} px: ingest with a larger region size"
        )
    if abs(record.rule.mpp / model.mpp - 1) > 0.05:
        raise InputError(
            f"regions of {record.name!r} are at {record.rule.mpp} µm per pixel, the model at "
            f"{model.mpp}: ingest the slides at the model's resolution"
        )
    return table


def check_region_set(record: RegionSet, splits: Sequence[Split], model: ModelRecord) -> UInt8:
    """Do the same as `check_fit` for some splits, of which a region must be.

    Raises:
        InputError: the set does not fit the model, or has no region in the splits.
    """
    table = check_fit(record, model)
    if not record.of_split(*splits):
        raise InputError(f"region set {record.name!r} has no region in {' or '.join(splits)}")
    return table


def recut_crops(provenance: Provenance, regions: RegionIndex) -> list[Crop]:
    """Cut the crops of an image out of their regions again.

    Crops from regions that `regions` lacks, such as those of another split, are left out.
    """
    positions = {key: number for number, key in enumerate(regions.keys)}
    crops = []
    for origin in provenance.crops:
        if origin.region in positions:
            image = regions[positions[origin.region]].image
            window = np.s_[origin.y : origin.y + origin.side, origin.x : origin.x + origin.side]
            crops.append(Crop(origin.label, origin.placed_x, origin.placed_y, image[window]))
    return crops


def draw_crops(crops: Sequence[Crop], size: int) -> UInt8:
    """Draw crops at their places on a grey canvas: uint8 RGB (size, size, 3)."""
    canvas = np.full((size, size, 3), 230, np.uint8)
    for crop in crops:
        height, width = crop.pixels.shape[:2]
        canvas[crop.y : crop.y + height, crop.x : crop.x + width] = crop.pixels
        corner = (crop.x + width - 1, crop.y + height - 1)
        cv2.rectangle(canvas, (crop.x, crop.y), corner, (120, 120, 120), 1)
    return canvas
