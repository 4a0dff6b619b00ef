"""Features as HDF5, in the layout that TRIDENT and CLAM write and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from shared.contracts.embed import FeatureRecord, feature_record_key, features_key
from shared.contracts.ingest import CohortRecord, PatchGrid, SlideRecord, cohort_key
from shared.errors import InputError
from shared.storage import ObjectStore, sha256_file


@dataclass(frozen=True)
class Features:
    """Features of a slide's patches.

    Attributes:
        coords: int64 (N, 2), level-0 x and y.
        features: float32 (N, D).
    """

    coords: NDArray[np.int64]
    features: NDArray[np.float32]


def write_features(
    path: Path, found: Features, slide: SlideRecord, grid: PatchGrid, encoder: str
) -> None:
    """Write features with the attributes that TRIDENT gives its files."""
    magnification = round(10 / grid.mpp, 2)
    with h5py.File(path, "w", libver="latest") as file:
        coords = file.create_dataset("coords", data=found.coords, track_times=False)
        coords.attrs.update(
            {
                "patch_size": grid.size,
                "patch_size_level0": round(grid.size * grid.mpp / slide.mpp),
                "level0_magnification": round(10 / slide.mpp, 2),
                "target_magnification": magnification,
                "overlap": max(0, grid.size - grid.stride),
                "name": slide.slide,
                "savetodir": "",
                "level0_width": slide.width,
                "level0_height": slide.height,
            }
        )
        features = file.create_dataset(
            "features", data=found.features, chunks=True, track_times=False
        )
        features.attrs.update({"name": slide.slide, "savetodir": "", "encoder": encoder})


def read_features(path: Path) -> Features:
    """Read a features file of this project, TRIDENT or CLAM.

    Raises:
        InputError: it is no such file, or its parts do not fit together.
    """
    try:
        with h5py.File(path, "r") as file:
            features = np.asarray(file["features"], np.float32)
            coords = np.asarray(file["coords"], np.int64)
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path.name} is no features file: it needs the HDF5 datasets 'features' (N, D) and "
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
    return Features(coords, features)


def import_features(
    store: ObjectStore, cohort: str, encoder: str, folder: Path, license_name: str = "unknown"
) -> FeatureRecord:
    """Take features made elsewhere: one `<slide>.h5` for each slide of the cohort.

    Raises:
        InputError: a slide's file is missing or malformed, or the widths differ.
    """
    record = store.get_model(cohort_key(cohort), CohortRecord)
    counts, digests, widths = {}, {}, {}
    for slide in sorted(record.splits):
        path = folder / f"{slide}.h5"
        if not path.is_file():
            raise InputError(f"{folder} holds no {slide}.h5, which cohort {cohort!r} needs")
        found = read_features(path)
        counts[slide], widths[slide] = len(found.features), found.features.shape[1]
        digests[slide] = sha256_file(path)
    if len(set(widths.values())) != 1:
        raise InputError(f"features of different widths: {widths}")
    for slide in counts:
        store.put_file(features_key(encoder, cohort, slide), folder / f"{slide}.h5")
    made = FeatureRecord(
        encoder=encoder,
        cohort=cohort,
        dim=next(iter(widths.values())),
        license=license_name,
        slides=counts,
        sha256=digests,
    )
    store.put_json(feature_record_key(encoder, cohort), made)
    return made
