"""The sets of images that a study chooses from: region sets and synthetic datasets."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.reader_study import Kind, RealSet
from shared.contracts.regions import region_table_key, region_tar_key
from shared.datasets.samples import load_dataset, read_manifest
from shared.errors import InputError
from shared.imaging.codec import decode_png
from shared.imaging.region_sets import load_region_set
from shared.storage import Store, checked_file
from shared.storage.formats import read_table

MIN_SIDE = 32
"""Smallest side of a picture, pixels."""

MPP_TOLERANCE = 0.05
"""Greatest relative difference of mpp between sets, because images are not resampled and readers
would see a larger one."""


@dataclass(frozen=True)
class Candidate:
    """An image that a study may choose.

    Attributes:
        kind: 'real' or 'synthetic'.
        source: title of the set that it comes from.
        key: key of the region or sample.
        tissue: name of its most frequent class.
        tar: key of the tar shard that holds the image as `<key>.png`.
        digest: SHA-256 of the shard; None or empty: older sets do not say it.
    """

    kind: Kind
    source: str
    key: str
    tissue: str
    tar: str
    digest: str | None


@dataclass(frozen=True)
class ImageSet:
    """A set of images that a study chooses from.

    Attributes:
        title: name of the set in results.
        size: side of the images, pixels.
        mpp: resolution of the images, µm per pixel.
        candidates: the images.
    """

    title: str
    size: int
    mpp: float
    candidates: tuple[Candidate, ...]


def real_set(store: Store, asked: RealSet) -> ImageSet:
    """Return the regions of some splits of a region set, as an image set.

    Raises:
        InputError: there is no such region set.
    """
    record = load_region_set(store, asked.regions)
    candidates: list[Candidate] = []
    for part in record.of_split(*asked.splits):
        rows = _rows(store, region_table_key(record.name, part.slide))
        tar = region_tar_key(record.name, part.slide)
        for key, fractions in rows:
            tissue = _tissue(record.classes, fractions)
            candidates.append(Candidate("real", asked.title, key, tissue, tar, part.sha256))
    return ImageSet(asked.title, record.rule.size, record.rule.mpp, tuple(candidates))


def synthetic_set(store: Store, dataset: str) -> ImageSet:
    """Return the images of a synthetic dataset, as an image set.

    Raises:
        InputError: there is no such dataset, or it is not finished.
    """
    record = load_dataset(store, dataset)
    digests = dict(zip_longest(record.shards, record.digests))
    rows = read_manifest(store, record, ["key", "fractions", "shard"]).to_pylist()
    candidates = tuple(
        Candidate(
            "synthetic", dataset, row["key"], _tissue(record.classes, row["fractions"]),
            row["shard"], digests.get(row["shard"]),
        )
        for row in rows
    )  # fmt: skip
    return ImageSet(dataset, record.size, record.mpp, candidates)


def _rows(store: Store, key: str) -> Iterator[tuple[str, list[float]]]:
    for row in read_table(store, key, ["key", "fractions"], local=True).to_pylist():
        yield row["key"], row["fractions"]


def _tissue(classes: Classes, fractions: Sequence[float]) -> str:
    shares = np.asarray(fractions)[classes.first :]
    return classes.names[classes.first + int(shares.argmax())]


def common_size(sets: Sequence[ImageSet]) -> tuple[int, float]:
    """Return the side (pixels) and the mpp of a study's pictures.

    Raises:
        InputError: the sets differ in resolution, or the images of one are too small.
    """
    finest, coarsest = (f(sets, key=lambda item: item.mpp) for f in (min, max))
    if coarsest.mpp / finest.mpp - 1 > MPP_TOLERANCE:
        raise InputError(
            f"{finest.title} is at {finest.mpp:g} µm per pixel, {coarsest.title} at "
            f"{coarsest.mpp:g}: a study shows one resolution, because readers would recognise "
            "resampled images; ingest the slides at the model's resolution"
        )
    smallest = min(sets, key=lambda item: item.size)
    if smallest.size < MIN_SIDE:
        raise InputError(
            f"images of {smallest.title} are {smallest.size} px wide; "
            f"a study needs at least {MIN_SIDE} px"
        )
    return smallest.size, finest.mpp


def read_images(store: Store, chosen: Sequence[Candidate]) -> Iterator[tuple[int, UInt8]]:
    """Yield the position of each image in `chosen` and its pixels, uint8 RGB, shard by shard.

    Raises:
        ObjectNotFoundError: a shard is missing.
        DamagedObjectError: a shard is not as it was made.
        InputError: a shard lacks an image.
    """
    by_tar: dict[str, list[int]] = {}
    for position, item in enumerate(chosen):
        by_tar.setdefault(item.tar, []).append(position)
    for key, positions in by_tar.items():
        path = checked_file(store, key, chosen[positions[0]].digest)
        with tarfile.open(path, mode="r:") as tar:
            members = {member.name: member for member in tar}
            for position in positions:
                member = members.get(f"{chosen[position].key}.png")
                file = tar.extractfile(member) if member is not None else None
                if file is None:
                    raise InputError(
                        f"{key} lacks image {chosen[position].key!r}: make the set again"
                    )
                yield position, decode_png(file.read())
