"""Features as HDF5, in the layout that TRIDENT and CLAM write and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
from pydantic import Field, ValidationError

from shared.arrays import Float32, Int64
from shared.contracts.base import Contract
from shared.contracts.ingest import PatchGrid, SlideRecord
from shared.errors import InputError
from shared.features_reader import LARGEST, packed_limit
from shared.sandbox import ANSWER_BYTES, open_sandboxed
from shared.storage import DamagedObjectError, Store, checked_file

CPU_SECONDS = 5.0
"""Longest processor time for opening a features file, or reading some rows: HDF5 goes round in
circles on some damaged files."""

BATCH = 16_384
"""Rows of a batch; of 1,536 numbers they take 100 MB."""


FARTHEST = 1 << 40
"""Largest coordinate of a patch, level-0 pixels."""


class FeaturesFacts(Contract):
    """What the reading process says about a features file."""

    patches: int = Field(ge=0, le=1 << 31)
    dim: int = Field(ge=1, le=1 << 20)
    stated: dict[str, Annotated[float, Field(ge=0, le=1e9)]] = Field(max_length=100)
    slide: str | None = Field(max_length=4096)


@dataclass(frozen=True)
class PatchFeatures:
    """Features of a slide's patches.

    Attributes:
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        features: float32 (N, D), one row per patch.
        stated: the attributes of `coords` that the file states, by TRIDENT's and CLAM's names;
            the first number of each pair.
        slide: name of the slide; None if the file does not state it.
    """

    coords: Int64
    features: Float32
    stated: Mapping[str, float] = field(default_factory=dict)
    slide: str | None = None


def write_features(
    path: Path,
    coords: Int64,
    batches: Iterable[Float32],
    dim: int,
    slide: SlideRecord,
    grid: PatchGrid,
    encoder: str,
    filters: Mapping[str, float] | None = None,
) -> None:
    """Write the features of a slide's patches, with the attributes of TRIDENT's files.

    Args:
        path: the .h5 file to write.
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        batches: float32 (n, dim) arrays, together N rows in the order of `coords`.
        dim: width of the features.
        slide: the slide of the patches.
        grid: size and spacing of the patches.
        encoder: name of the encoder.
        filters: filters that have left out other patches, which become attributes of `features`.
    """
    with h5py.File(path, "w") as file:
        places = file.create_dataset("coords", data=coords, track_times=False)
        places.attrs.update(trident_attributes(slide, grid))
        features = file.create_dataset(
            "features", (len(coords), dim), np.float32, track_times=False
        )
        about = {"name": slide.slide, "savetodir": "", "encoder": encoder}
        features.attrs.update(about | dict(filters or {}))
        done = 0
        for batch in batches:
            features[done : done + len(batch)] = batch
            done += len(batch)


def trident_attributes(slide: SlideRecord, grid: PatchGrid) -> dict[str, Any]:
    """Return TRIDENT's attributes of `coords`.

    TRIDENT's patches are square in level-0 pixels. Where the slide's pixels are not square, ours
    are not: the attributes hold the width in level-0 pixels and the magnification along x.
    """
    return {
        "patch_size": grid.size,
        "patch_size_level0": max(1, round(grid.size * grid.mpp / slide.mpp)),
        "level0_magnification": magnification(slide.mpp),
        "target_magnification": magnification(grid.mpp),
        "overlap": max(0, grid.size - grid.stride),
        "name": slide.slide,
        "savetodir": "",
        "level0_width": slide.width,
        "level0_height": slide.height,
    }


def magnification(mpp: float) -> float:
    """Return the magnification of a resolution: 20 at 0.5 µm/px."""
    return float(f"{10 / mpp:.6g}")


class FeaturesFile:
    """An open features file of this project, TRIDENT or CLAM, which the sandbox reads.

    Args:
        path: the .h5 file.
        name: name of the file in messages; None: that of `path`.

    Attributes:
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        dim: width of the features.
        stated: as in `PatchFeatures`.
        slide: as in `PatchFeatures`.

    Raises:
        InputError: the file has another layout, its coordinates do not fit its features or are
            no whole numbers, or it states more than it can hold.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name = name or path.name
        self._file = open_sandboxed(
            "shared.features_reader:FeaturesReader", path, name, cpu_seconds=CPU_SECONDS
        )
        try:
            facts = FeaturesFacts.model_validate(self._file.facts)
            if facts.patches * max(8, facts.dim) > packed_limit(path):
                raise InputError(f"{name} states more features than it can hold")
            self.dim, self.stated, self.slide = facts.dim, facts.stated, facts.slide
            self.coords: Int64 = self._read("coords", 0, facts.patches, 2, np.int64)
            if self.coords.size and np.abs(self.coords).max() > FARTHEST:
                raise InputError(f"{name} has patches far beyond any slide")
        except ValidationError as error:
            self._file.close()
            raise InputError(f"{name} states what no features file does: {error}") from error
        except InputError:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self.coords)

    def features(self, start: int = 0, stop: int | None = None) -> Float32:
        """Read the features of consecutive patches: float32 (n, dim).

        Raises:
            InputError: they are not finite or beyond ±65,504, or cannot be read.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        rows = np.asarray(self._read("features", start, stop, self.dim, np.float32), np.float32)
        if len(rows) and not max(rows.max(), -rows.min()) <= LARGEST:  # NaN is not, either
            raise InputError(f"{self.name} has features that are not finite or beyond ±65,504")
        return rows

    def batches(self) -> Iterator[Float32]:
        """Yield the features in order, float32 (n, dim). Raises `InputError` as `features`."""
        for start in range(0, len(self), BATCH):
            yield self.features(start, start + BATCH)

    def _read(self, what: str, start: int, stop: int, width: int, dtype: Any) -> Any:
        out = np.empty((stop - start, width), dtype)
        step = max(1, ANSWER_BYTES // (width * out.itemsize))
        for at in range(start, stop, step):
            end = min(stop, at + step)
            out[at - start : end - start] = self._file.read(
                [what, at, end], (end - at, width), dtype
            )
        return out

    def __enter__(self) -> FeaturesFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_features(store: Store, key: str, digest: str | None) -> FeaturesFile:
    """Open a slide's features that the store holds.

    Args:
        store: holds them.
        key: where they lie.
        digest: their SHA-256; None: it is not known.

    Raises:
        ObjectNotFoundError: the store holds no such object.
        DamagedObjectError: it is not what its record says, or no features file.
    """
    path = checked_file(store, key, digest)
    try:
        return FeaturesFile(path)
    except InputError as error:
        raise DamagedObjectError(store, key, str(error)) from error


def read_features(path: Path, name: str | None = None) -> PatchFeatures:
    """Read a whole features file; see `FeaturesFile`.

    Raises:
        InputError: as `FeaturesFile`, or features are not finite or beyond ±65,504.
    """
    with FeaturesFile(path, name) as file:
        try:
            return PatchFeatures(file.coords, file.features(), file.stated, file.slide)
        except MemoryError as error:
            raise InputError(f"{name or path.name} does not fit into memory") from error
