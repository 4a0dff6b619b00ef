"""An export of features is read back by the rules of TRIDENT's and CLAM's own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch

from heterotissue.features_export import export_features
from shared.contracts.ingest import PatchGrid
from shared.errors import InputError
from shared.storage import DirectoryStore
from tests.formats.test_features import (
    COORDS,
    FEATURES,
    WIDTH,
    Array,
    make_cohort,
    slide_record,
    take,
    taken,
    write,
)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, slide_record("s1"))
    return store


def read_as_trident(path: Path) -> tuple[dict[str, Any], Array]:
    """Read coordinates as `trident.IO.read_coords` does."""
    with h5py.File(path, "r") as file:
        return dict(file["coords"].attrs), file["coords"][:]


def test_an_export_is_read_by_tridents_rules(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    grid = PatchGrid(size=256, mpp=0.5, stride=192)
    slide = slide_record("s1", source="/slides/Fall 1.svs", mpp=0.2525, mpp_y=0.2525)
    coords: Array = np.array([(380 * x, 0) for x in range(2)])
    make_cohort(store, slide, slide_record("s2", mpp_y=0.6), grid=grid, coords=coords)
    for name in ("s1", "s2"):
        write(tmp_path / "in" / f"{name}.h5", coords, FEATURES[:2])
    take(store, tmp_path / "in")
    left_out = export_features(store, "c", "mine", "trident", tmp_path / "out")
    assert list(left_out) == ["s2"]
    assert "0.5 × 0.6 µm" in left_out["s2"]
    job = tmp_path / "out" / "20x_256px_64px_overlap"
    attrs, places = read_as_trident(job / "patches" / "Fall 1_patches.h5")
    assert places.dtype == np.int64
    assert np.array_equal(places, coords)
    # WSIPatcher: patch_size_src = round(patch_size * src_mag / dst_mag)
    side = round(
        attrs["patch_size"] * attrs["level0_magnification"] / attrs["target_magnification"]
    )
    assert side == attrs["patch_size_level0"] == round(256 * 0.5 / 0.2525) == 507
    assert (attrs["overlap"], attrs["name"], attrs["level0_width"]) == (64, "Fall 1", WIDTH)
    with h5py.File(job / "features_mine" / "Fall 1.h5", "r") as file:
        assert np.array_equal(file["features"][:], FEATURES[:2])
        assert np.array_equal(file["coords"][:], coords)
        assert dict(file["coords"].attrs) == attrs
        assert file["features"].attrs["encoder"] == "mine"
    with pytest.raises(InputError, match="is there already"):
        export_features(store, "c", "mine", "trident", tmp_path / "out")
    make_cohort(store, slide.model_copy(update={"sha256": "1"}), grid=grid, coords=coords)
    with pytest.raises(InputError, match=r"before 1 slides of cohort 'c' were replaced \(s1\)"):
        export_features(store, "c", "mine", "trident", tmp_path / "new")


def test_an_export_is_read_by_clams_rules(store: DirectoryStore, tmp_path: Path) -> None:
    write(tmp_path / "in" / "s1.h5")
    take(store, tmp_path / "in")
    out = tmp_path / "out"
    assert export_features(store, "c", "mine", "clam", out) == {}
    # Generic_MIL_Dataset reads bags by slide_id, from pt_files or h5_files.
    bag = torch.load(out / "pt_files" / "s1.pt")
    with h5py.File(out / "h5_files" / "s1.h5", "r") as file:
        assert np.array_equal(file["features"][:], bag.numpy())
        assert np.array_equal(file["coords"][:], COORDS)
        assert file["coords"].dtype == np.int32
    assert np.array_equal(bag.numpy(), FEATURES)
    # Whole_Slide_Bag_FP reads (patch_size, patch_size) pixels of patch_level at each coordinate.
    with h5py.File(out / "patches" / "s1.h5", "r") as file:
        assert file["coords"].attrs["patch_level"] == 0
        assert file["coords"].attrs["patch_size"] == 64
        assert np.array_equal(file["coords"][:], COORDS)


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_an_export_can_be_imported_again(
    store: DirectoryStore, tmp_path: Path, layout: Literal["trident", "clam"]
) -> None:
    write(tmp_path / "in" / "s1.h5")
    take(store, tmp_path / "in")
    export_features(store, "c", "mine", layout, tmp_path / "out")
    take(store, tmp_path / "out", "again")
    for mine, again in zip(taken(store), taken(store, "again"), strict=True):
        assert np.array_equal(mine, again)


def test_a_cohort_without_features_is_not_exported(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no features of 'mine': run 'htd embed --cohort c"):
        export_features(store, "c", "mine", "trident", tmp_path / "out")
    assert not (tmp_path / "out").exists()
