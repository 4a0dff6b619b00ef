"""Write a cohort's features in the folders and files that TRIDENT's and CLAM's readers expect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal

import h5py
import numpy as np

from shared.contracts.embed import (
    FeatureRecord,
    encoder_folder,
    feature_record_key,
    features_key,
)
from shared.contracts.ingest import CohortRecord, PatchGrid, SlideRecord, cohort_key
from shared.errors import InputError
from shared.features import PatchFeatures, read_features, trident_attributes, write_features
from shared.imaging.stored_slides import read_record
from shared.storage import Store
from shared.whole_files import whole

Layout = Literal["trident", "clam"]

MAX_ASPECT = 1.01
"""Largest ratio of a pixel's sides: both tools read patches that are square in pixels."""


def export_features(
    store: Store, cohort: str, encoder: str, layout: Layout, folder: Path
) -> dict[str, str]:
    """Write the features of a cohort's slides.

    TRIDENT: `<magnification>x_<size>px_<overlap>px_overlap/features_<encoder>/<slide>.h5`, and
    `patches/<slide>_patches.h5` beside it. CLAM: `h5_files/<slide>.h5`, `pt_files/<slide>.pt`,
    and `patches/<slide>.h5`, whose patches lie on level 0. A slide has the name of its file.

    Args:
        store: holds the features.
        cohort: name of the cohort.
        encoder: name of the features' encoder.
        layout: whose layout to write.
        folder: folder that receives the files.

    Returns:
        Slide → why it was left out.

    Raises:
        InputError: the cohort has no features of this encoder, they are of other patches than it
            has now, or `folder` has features already.
    """
    if not store.exists(feature_record_key(encoder, cohort)):
        raise InputError(
            f"cohort {cohort!r} has no features of {encoder!r}: run 'htd embed --cohort {cohort} "
            f"--encoder {encoder}'"
        )
    features = store.get_model(feature_record_key(encoder, cohort), FeatureRecord)
    record = store.get_model(cohort_key(cohort), CohortRecord)
    features.check(record)
    grid = record.patches
    slides = {name: read_record(store, record, name) for name in features.slides}
    if layout == "trident":
        root = folder / trident_folder(grid)
        own = [root / f"features_{encoder_folder(encoder)}"]
    else:
        root, own = folder, [folder / "h5_files", folder / "pt_files"]
    if any(path.exists() for path in own):
        raise InputError(f"{own[0]} is there already: name another folder, or remove it")
    for path in [*own, root / "patches"]:
        path.mkdir(parents=True, exist_ok=True)
    names = file_names(slides)
    left_out = {}
    for name, slide in slides.items():
        if max(slide.mpp, slide.mpp_y) > MAX_ASPECT * min(slide.mpp, slide.mpp_y):
            left_out[name] = (
                f"its pixels are {slide.mpp:.4g} × {slide.mpp_y:.4g} µm, and {layout} has only "
                "patches that are square in pixels"
            )
            continue
        named = slide.model_copy(update={"slide": names[name]})
        patches = read_features(store.local(features_key(encoder, cohort, name)), f"{name}.h5")
        if layout == "trident":
            _write_trident(root, own[0], patches, named, grid, encoder)
        else:
            _write_clam(root, patches, named, grid)
    return left_out


def trident_folder(grid: PatchGrid) -> str:
    """Return TRIDENT's name of the folder of a grid's patches: `20x_256px_0px_overlap`."""
    overlap = max(0, grid.size - grid.stride)
    return f"{10 / grid.mpp:g}x_{grid.size}px_{overlap}px_overlap"


def file_names(slides: dict[str, SlideRecord]) -> dict[str, str]:
    """Return the name of each slide's file without its suffix; if not unique, the slide's name."""
    stems = {slide: PurePosixPath(record.source).stem for slide, record in slides.items()}
    count = Counter(stems.values())
    return {slide: stem if count[stem] == 1 else slide for slide, stem in stems.items()}


def _write_trident(
    root: Path,
    features: Path,
    patches: PatchFeatures,
    slide: SlideRecord,
    grid: PatchGrid,
    encoder: str,
) -> None:
    dim = patches.features.shape[1]
    with whole(features / f"{slide.slide}.h5") as path:
        write_features(path, patches.coords, [patches.features], dim, slide, grid, encoder)
    with whole(root / "patches" / f"{slide.slide}_patches.h5") as path, h5py.File(path, "w") as h5:
        places = h5.create_dataset("coords", data=patches.coords)
        places.attrs.update(trident_attributes(slide, grid))


def _write_clam(root: Path, patches: PatchFeatures, slide: SlideRecord, grid: PatchGrid) -> None:
    import torch

    coords = patches.coords.astype(np.int32)
    size = (slide.width, slide.height)
    attributes = {
        "patch_size": trident_attributes(slide, grid)["patch_size_level0"],
        "patch_level": 0,
        "downsample": (1.0, 1.0),
        "downsampled_level_dim": size,
        "level_dim": size,
        "name": slide.slide,
        "save_path": "",
    }
    with whole(root / "h5_files" / f"{slide.slide}.h5") as path, h5py.File(path, "w") as h5:
        h5.create_dataset("features", data=patches.features)
        h5.create_dataset("coords", data=coords).attrs.update(attributes)
    with whole(root / "patches" / f"{slide.slide}.h5") as path, h5py.File(path, "w") as h5:
        h5.create_dataset("coords", data=coords).attrs.update(attributes)
    with whole(root / "pt_files" / f"{slide.slide}.pt") as path:
        torch.save(torch.from_numpy(patches.features), path)
