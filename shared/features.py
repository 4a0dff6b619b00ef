"""Features as HDF5, in the layout that TRIDENT and CLAM write and read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from shared.arrays import Float32, Int64
from shared.contracts.embed import FeatureRecord, feature_record_key, features_key
from shared.contracts.ingest import CohortRecord, PatchGrid, SlideRecord, cohort_key
from shared.errors import InputError
from shared.imaging.slide import read_record
from shared.storage import Store, sha256_file

MAX_DATASET_BYTES = 16 << 30
"""Largest dataset of a foreign file: some two million patches of 2,048 numbers."""


@dataclass(frozen=True)
class PatchFeatures:
    """Features of a slide's patches.

    Attributes:
        coords: int64 (N, 2), level-0 x and y of each patch's upper left corner.
        features: float32 (N, D), one row per patch.
        side: side of a patch in level-0 pixels; None if the file does not state it.
    """

    coords: Int64
    features: Float32
    side: int | None = None


def write_features(
    path: Path,
    coords: Int64,
    batches: Iterable[Float32],
    dim: int,
    slide: SlideRecord,
    grid: PatchGrid,
    encoder: str,
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
    """
    with h5py.File(path, "w") as file:
        places = file.create_dataset("coords", data=coords, track_times=False)
        places.attrs.update(
            {
                "patch_size": grid.size,
                "patch_size_level0": round(grid.size * grid.mpp / slide.mpp),
                "level0_magnification": round(10 / slide.mpp, 2),
                "target_magnification": round(10 / grid.mpp, 2),
                "overlap": max(0, grid.size - grid.stride),
                "name": slide.slide,
                "savetodir": "",
                "level0_width": slide.width,
                "level0_height": slide.height,
            }
        )
        features = file.create_dataset(
            "features", (len(coords), dim), np.float32, track_times=False
        )
        features.attrs.update({"name": slide.slide, "savetodir": "", "encoder": encoder})
        done = 0
        for batch in batches:
            features[done : done + len(batch)] = batch
            done += len(batch)


def read_features(path: Path) -> PatchFeatures:
    """Read a features file of this project, TRIDENT or CLAM.

    Raises:
        InputError: the file has another layout, its coordinates do not fit its features, or
            features are not finite.
    """
    try:
        with h5py.File(path, "r") as file:
            places = own_dataset(file, "coords")
            features = np.asarray(own_dataset(file, "features"), np.float32)
            coords = np.asarray(places, np.int64)
            stated = places.attrs.get("patch_size_level0")
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path.name} is not a features file: it needs the HDF5 datasets 'features' (N, D) and "
            f"'coords' (N, 2) ({error})"
        ) from error
    if features.ndim == 3 and features.shape[0] == 1:
        features, coords = features[0], coords.reshape(-1, 2)
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise InputError(
            f"{path.name}: features {features.shape} and coords {coords.shape} do not fit together"
        )
    if not np.isfinite(features).all():
        raise InputError(f"{path.name} has features that are not finite")
    try:
        side = None if stated is None else int(stated)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path.name}: the attribute patch_size_level0 is {stated!r}, not a number of pixels"
        ) from error
    return PatchFeatures(coords, features, side)


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of numbers whose values lie in the file itself.

    HDF5 follows links, external storage and virtual datasets to any file that the process may
    read, so a foreign file must not have them.

    Raises:
        KeyError: the file has no such dataset.
        InputError: the dataset lies elsewhere, holds no numbers, or is larger than the file.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no dataset {name!r}")
    item = file[name] if isinstance(link, h5py.HardLink) else None
    where = Path(file.filename).name
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise InputError(
            f"{where}: {name!r} is not a dataset of this file but a group, a link, external "
            "storage or a virtual dataset: copy the values into the file"
        )
    if item.dtype.kind not in "iuf":
        raise InputError(f"{where}: {name!r} holds {item.dtype}, not numbers")
    limit = MAX_DATASET_BYTES if item.chunks else Path(file.filename).stat().st_size
    if item.nbytes > limit:
        raise InputError(f"{where}: {name!r} states {item.nbytes:,} bytes, at most {limit:,} fit")
    return item


def import_features(
    store: Store, cohort: str, encoder: str, folder: Path, license_name: str = "unknown"
) -> FeatureRecord:
    """Import features from other tools: one `<slide>.h5` for each slide of the cohort.

    The files are rewritten in this project's layout. Their patches must be as large as the
    cohort's, but may lie elsewhere on the slide.

    Raises:
        InputError: a slide's file is missing or malformed, its patches are of another size
            or lie outside the slide, or the features differ in width.
    """
    record = store.get_model(cohort_key(cohort), CohortRecord)
    grid = record.patches
    slides = {name: read_record(store, record, name) for name in sorted(record.splits)}
    widths: dict[str, int] = {}
    for name, slide in slides.items():
        path = folder / f"{name}.h5"
        if not path.is_file():
            raise InputError(f"{folder} holds no {name}.h5, which cohort {cohort!r} needs")
        patches = read_features(path)
        widths[name] = patches.features.shape[1]
        check_places(path, patches, slide, grid)
    if len(set(widths.values())) != 1:
        raise InputError(f"features of different widths: {widths}")
    counts, digests = {}, {}
    for name, slide in slides.items():
        patches = read_features(folder / f"{name}.h5")
        with store.writing(features_key(encoder, cohort, name)) as path:
            write_features(
                path, patches.coords, [patches.features], widths[name], slide, grid, encoder
            )
            counts[name], digests[name] = len(patches.coords), sha256_file(path)
    imported = FeatureRecord(
        encoder=encoder,
        cohort=cohort,
        dim=next(iter(widths.values())),
        license=license_name,
        slides=counts,
        sha256=digests,
    )
    store.put_json(feature_record_key(encoder, cohort), imported)
    return imported


def check_places(path: Path, patches: PatchFeatures, slide: SlideRecord, grid: PatchGrid) -> None:
    """Raise `InputError` unless the patches lie on `slide` and are as large as those of `grid`."""
    side = grid.size * grid.mpp / slide.mpp
    if patches.side is not None and abs(patches.side - side) > 0.05 * side:
        raise InputError(
            f"{path.name} has patches of {patches.side} level-0 px, the cohort's are {side:.0f}: "
            "ingest the slides as a cohort with that patch size, or make the features again"
        )
    inside = (patches.coords >= 0) & (patches.coords < (slide.width, slide.height))
    if not inside.all():
        raise InputError(
            f"{path.name} has patches outside {slide.slide} ({slide.width}×{slide.height} px): "
            "was it made from another slide, or are its coordinates not of level 0?"
        )
