"""Features of TRIDENT and CLAM: what is taken, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from heterotissue.feature_files import find_features, import_request
from heterotissue.running import Target
from services.embed.places import compare_places
from services.embed.stage import EmbedStage
from shared.contracts.embed import EmbedRequest, FeatureRecord, feature_record_key, features_key
from shared.contracts.ingest import (
    CohortRecord,
    PatchGrid,
    SlideRecord,
    cohort_key,
    patches_key,
    slide_key,
)
from shared.contracts.jobs import JobStatus
from shared.errors import InputError
from shared.features import read_features
from shared.jobs import Ledger, run_job
from shared.settings import settings
from shared.storage import DirectoryStore
from shared.storage.formats import table_bytes

Array = NDArray[Any]

GRID = PatchGrid(size=64, mpp=0.5, stride=64)
WIDTH, HEIGHT = 1000, 1200
COORDS: Array = np.array([(x, y) for y in range(128, 576, 64) for x in range(128, 512, 64)])
FEATURES: Array = np.random.default_rng(0).normal(size=(len(COORDS), 5)).astype(np.float32)
TRIDENT: dict[str, Any] = {
    "patch_size": 64, "patch_size_level0": 64, "level0_magnification": 20,
    "target_magnification": 20, "overlap": 0, "name": "s1", "savetodir": "out",
    "level0_width": WIDTH, "level0_height": HEIGHT,
}  # fmt: skip
CLAM: dict[str, Any] = {
    "patch_size": 64, "patch_level": 0, "downsample": (1.0, 1.0), "level_dim": (WIDTH, HEIGHT),
    "downsampled_level_dim": (WIDTH, HEIGHT), "name": "s1", "save_path": "out",
}  # fmt: skip


def slide_record(name: str, **changes: Any) -> SlideRecord:
    values: dict[str, Any] = {
        "slide": name, "source": f"/slides/{name}.svs", "sha256": "0", "width": WIDTH,
        "height": HEIGHT, "mpp": 0.5, "mpp_y": 0.5, "vendor": "aperio", "levels": 2,
        "objective": 20, "tissue_fraction": 0.5, "stain": "h&e",
    }  # fmt: skip
    return SlideRecord.model_validate(values | changes)


def make_cohort(
    store: DirectoryStore, *slides: SlideRecord, grid: PatchGrid = GRID, coords: Array = COORDS
) -> None:
    for slide in slides:
        store.put_json(slide_key(slide.slide), slide)
        table = pa.table({"x": coords[:, 0], "y": coords[:, 1]})
        store.put(patches_key("c", slide.slide), table_bytes(table))
    record = CohortRecord(
        cohort="c", classes=None, patches=grid, splits={s.slide: "train" for s in slides},
        sha256={s.slide: s.sha256 for s in slides},
    )  # fmt: skip
    store.put_json(cohort_key("c"), record)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, slide_record("s1"))
    return store


def write(path: Path, coords: Any = COORDS, features: Any = FEATURES, **attrs: Any) -> None:
    """Write a file as TRIDENT and CLAM do, with chunks that grow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if coords is not None:
            places = file.create_dataset("coords", data=coords)
            places.attrs.update(attrs)
        if features is not None:
            file.create_dataset("features", data=features)


def take(store: DirectoryStore, folder: Path, encoder: str = "mine") -> JobStatus:
    """Import a folder, as `htd embed --import` does."""
    ledger = Ledger(store)
    request = import_request(Target(store, settings()), "c", encoder, folder)
    return run_job(ledger, EmbedStage(), ledger.submit(request))


def taken(store: DirectoryStore, encoder: str = "mine", slide: str = "s1") -> tuple[Array, Array]:
    found = read_features(store.local(features_key(encoder, "c", slide)))
    return found.coords, found.features


def refusal(store: DirectoryStore, folder: Path) -> str:
    status = take(store, folder)
    assert status.state == "failed"
    assert not list(store.list("features/"))
    return status.failed["s1"]


@pytest.mark.parametrize(
    ("changes", "attrs"),
    [
        ({}, TRIDENT),
        ({}, CLAM),
        ({}, {}),
        ({"coords": COORDS.astype(np.int32)}, {}),
        ({"coords": COORDS.astype(np.float64)}, {}),
        ({"coords": COORDS[None], "features": FEATURES[None]}, {}),
        ({"features": FEATURES[None]}, {}),
        ({"features": FEATURES[:, None]}, {}),
        ({"features": FEATURES.astype(np.float64)}, {}),
        ({}, {"patch_size": 32, "patch_level": 1, "downsample": 2.0}),
        ({}, {"patch_size": 32, "patch_level": 1, "level_dim": (WIDTH // 2, HEIGHT // 2)}),
        ({}, {"patch_size": 32, "patch_level": 0, "custom_downsample": 2}),
    ],
)
def test_the_same_patches_are_taken_in_every_layout(
    store: DirectoryStore, tmp_path: Path, changes: dict[str, Any], attrs: dict[str, Any]
) -> None:
    write(tmp_path / "in" / "s1.h5", **changes, **attrs)
    status = take(store, tmp_path / "in")
    assert status.result == {
        "slides": 1, "patches": 42, "dim": 5, "own_patches_covered": "100% or more",
        "where_slides_have_no_patch": "0% or less", "left_out_at_edges": 0,
    }  # fmt: skip
    coords, features = taken(store)
    assert np.array_equal(coords, COORDS)
    assert np.array_equal(features, FEATURES)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda cells: cells, None),
        (lambda cells: cells[len(cells) // 5 :], None),  # another idea of tissue
        (lambda cells: np.concatenate([cells, cells[:6] + np.array([9, 0])]), None),
        (lambda cells: cells + np.array([1, 0]), "-1 patches in x and +0 in y"),
        (lambda cells: cells + np.array([-1, 1]), "+1 patches in x and -1 in y"),
        (lambda cells: cells[:, ::-1], "with x and y swapped"),
    ],
)
def test_patches_that_would_fit_better_elsewhere_are_a_doubt(
    change: Callable[[Array], Array], doubt: str | None
) -> None:
    own = np.array([(x, y) for y in range(6) for x in range(8)], np.int64)
    step = np.array([64.0, 64.0])
    found = compare_places("s1.h5", change(own) * 64, own * 64, step)
    assert (found.doubt is None) if doubt is None else (doubt in str(found.doubt))


def test_half_precision_is_taken(store: DirectoryStore, tmp_path: Path) -> None:
    half = FEATURES.astype(np.float16)
    write(tmp_path / "in" / "s1.h5", features=half)
    take(store, tmp_path / "in", "half")
    assert np.array_equal(taken(store, "half")[1], half.astype(np.float32))
    brain = h5py.h5t.IEEE_F32LE.copy()  # bfloat16: a float32 without its lower 16 bits
    brain.set_fields(15, 7, 8, 0, 7)
    brain.set_size(2)
    values = np.round(FEATURES * 4) / 4
    write(tmp_path / "brain" / "s1.h5", features=None)
    with h5py.File(tmp_path / "brain" / "s1.h5", "a") as file:
        place = h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file.id, b"features", brain, place).write(
            h5py.h5s.ALL, h5py.h5s.ALL, values
        )
    take(store, tmp_path / "brain", "brain")
    assert np.array_equal(taken(store, "brain")[1], values)


DOUBLED = COORDS.copy()
DOUBLED[1] = DOUBLED[0]
ZERO = FEATURES.copy()
ZERO[:3] = 0
HUGE = FEATURES.copy()
HUGE[:2, 0] = 1e30
NAN = FEATURES.copy()
NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 512, "patch_level": 0}, "patches of 512 level-0 px (patch_size 512 on"),
        ({"patch_size": 64, "patch_level": 1, "downsample": 4.0}, "patches of 256 level-0 px"),
        ({"patch_size": 64, "patch_level": 1}, "neither downsample nor level_dim"),
        ({"patch_size": 8, "patch_level": 3, "downsample": 8}, "s1 has 2 levels"),
        (TRIDENT | {"patch_size_level0": 128, "patch_size": 128}, "the cohort's are 64 (64 px at"),
        (TRIDENT | {"patch_size": 32}, "patches of 32 level-0 px (patch_size 32 at 20x)"),
        (TRIDENT | {"patch_size": 32, "target_magnification": 10}, "patches at 1 µm/px"),
        (TRIDENT | {"level0_magnification": 80}, "80x at level 0, but s1 has 0.5 µm/px (20x)"),
        (TRIDENT | {"level0_width": 999}, "level0_width 999, but s1 has 1000 px"),
        ({"patch_size_level0": "sixty"}, "patch_size_level0 is 'sixty', not a number"),
        ({"patch_size_level0": np.nan}, "patch_size_level0 is nan, which cannot be"),
        ({"coords": COORDS // 2}, "every 32 level-0 px in x, the cohort has one every 64: its"),
        ({"coords": COORDS // 2}, "2 times smaller"),
        ({"coords": COORDS + 0.5}, "42 of 42 coords are no whole level-0 pixels"),
        ({"coords": COORDS * np.nan}, "no whole level-0 pixels"),
        ({"coords": COORDS - 200}, "begin outside s1 (1000×1200 px)"),
        ({"coords": COORDS + 900}, "begin outside s1"),
        ({"coords": DOUBLED}, "1 doubled coordinates among 42, such as (128, 128), 2 times"),
        ({"coords": COORDS + 512}, "42 patches, which cover 0% of the slide's 42 patches"),
        ({"coords": COORDS[:12], "features": FEATURES[:12]}, "12 patches, which cover 29%"),
        ({"coords": COORDS[:41]}, "features (42, 5) and coords (41, 2) do not fit together"),
        ({"coords": COORDS.T}, "do not fit together"),
        ({"coords": None}, "it needs the HDF5 datasets"),
        ({"features": FEATURES[:1]}, "one row for the whole slide"),
        ({"features": FEATURES[0]}, "one row for the whole slide"),
        ({"features": FEATURES[:0], "coords": COORDS[:0]}, "0 patches, which cover 0%"),
        ({"features": np.zeros(0), "coords": COORDS[:0]}, "found no patches"),
        ({"features": FEATURES[:, :0]}, "width of 0"),
        ({"features": ZERO}, "the features of 3 of 42 patches are zero"),
        ({"features": np.ones((42, 5))}, "all 42 patches have the same features"),
        ({"features": HUGE}, "2 of 42 rows have features that are beyond ±65,504, such as 1e+30"),
        ({"features": NAN}, "1 of 42 rows have features that are not finite"),
        ({"features": FEATURES.astype(np.float64) * 1e300}, "beyond ±65,504"),
        ({"features": FEATURES.astype(np.float16).view(np.uint16)}, "bits of 16-bit floating"),
        ({"features": FEATURES.astype(complex)}, "not an array of real numbers"),
        ({"features": np.zeros(42, [("a", "f4")])}, "not an array of real numbers"),
        ({"features": h5py.Empty("f4")}, "not an array of real numbers"),
        ({"name": "s2", "features": FEATURES[:3]}, "do not fit together"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    store: DirectoryStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path / "in" / "s1.h5", **changes)
    answer = refusal(store, tmp_path / "in")
    assert message in answer
    assert "s1.h5" in answer


def test_datasets_of_lists_and_of_terabytes_are_refused(
    store: DirectoryStore, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "s1.h5", features=None)
    with h5py.File(tmp_path / "in" / "s1.h5", "a") as file:
        file.create_dataset("features", (42,), h5py.vlen_dtype(np.float32))
    assert "not an array of real numbers" in refusal(store, tmp_path / "in")
    write(tmp_path / "in" / "s1.h5", features=None)
    with h5py.File(tmp_path / "in" / "s1.h5", "a") as file:
        file.create_dataset("features", (42, 33 << 30), np.float32, chunks=(1, 1024))
    assert "states 5,952,824,672,256 bytes" in refusal(store, tmp_path / "in")


def test_patches_of_trident_over_the_edge_are_left_out_and_counted(tmp_path: Path) -> None:
    """TRIDENT's grid ends beyond the slide; what has its centre outside is mostly padding."""
    store = DirectoryStore(tmp_path / "store")
    edge: Array = np.array([(x, y) for y in range(0, 1152, 64) for x in range(640, 960, 64)])
    make_cohort(store, slide_record("s1", width=980), coords=edge)
    hanging = np.array([(960, y) for y in range(0, 192, 64)])
    both = np.concatenate([edge, hanging])
    features = np.random.default_rng(1).normal(size=(len(both), 4))
    write(tmp_path / "in" / "s1.h5", both, features, **TRIDENT | {"level0_width": 980})
    status = take(store, tmp_path / "in")
    assert status.result is not None
    assert status.result["left_out_at_edges"] == 3
    assert np.array_equal(taken(store)[0], edge)


def test_grids_that_drift_apart_by_rounding_fit(tmp_path: Path) -> None:
    """TRIDENT takes 0.2525 µm/px for 40x: its patches are 512 level-0 px wide, ours 507."""
    store = DirectoryStore(tmp_path / "store")
    grid = PatchGrid(size=256, mpp=0.5, stride=256)
    ours = np.array([(round(i * 506.93), round(j * 506.93)) for j in range(30) for i in range(30)])
    make_cohort(
        store, slide_record("s1", width=16000, height=16000, mpp=0.2525, mpp_y=0.2525),
        grid=grid, coords=ours,
    )  # fmt: skip
    theirs = np.array([(512 * i, 512 * j) for j in range(30) for i in range(30)])
    write(
        tmp_path / "in" / "s1.h5", theirs, np.random.default_rng(2).normal(size=(900, 3)),
        patch_size=256, patch_size_level0=512, level0_magnification=40, target_magnification=20,
        overlap=0, level0_width=16000, level0_height=16000,
    )  # fmt: skip
    assert take(store, tmp_path / "in").state == "done"


def test_a_bad_or_missing_file_costs_its_slide_alone(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, *(slide_record(f"s{i}") for i in range(1, 6)))
    write(tmp_path / "in" / "s1.h5")
    write(tmp_path / "in" / "s2.svs.h5")
    write(tmp_path / "in" / "S3.h5")
    write(tmp_path / "in" / "s4.h5", features=ZERO)
    write(tmp_path / "in" / "other.h5")
    status = take(store, tmp_path / "in")
    assert status.state == "partial"
    assert set(status.failed) == {"s4", "s5"}
    assert "holds no s5.h5" in status.failed["s5"]
    assert status.result is not None
    assert status.result["files_not_used"] == "other.h5, s4.h5"
    record = store.get_model(feature_record_key("mine", "c"), FeatureRecord)
    assert record.slides == {"s1": 42, "s2": 42, "s3": 42}


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, slide_record("s1"), slide_record("s2"))
    write(tmp_path / "in" / "s1.h5", **TRIDENT | {"name": "s2"})
    write(tmp_path / "in" / "s2.h5", **TRIDENT | {"name": "a stranger"})
    status = take(store, tmp_path / "in")
    assert "s1.h5 states that it is of slide 's2', not of 's1'" in status.failed["s1"]
    assert "s2.h5 states that it is of slide 'a stranger', not of 's2'" in status.failed["s2"]
    write(tmp_path / "in" / "s1.h5", **TRIDENT | {"name": "s1.svs"})
    write(tmp_path / "in" / "s2.h5", **TRIDENT | {"name": "s2"})
    with h5py.File(tmp_path / "in" / "s2.h5", "a") as file:
        file.attrs["slide"] = "a stranger"
    status = take(store, tmp_path / "in")
    assert status.failed == {"s2": "s2.h5 states that it is of several slides: s2, a stranger"}


def test_features_of_different_widths_are_refused_before_any_is_read(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    make_cohort(store, slide_record("s1"), slide_record("s2"), slide_record("s3"))
    write(tmp_path / "in" / "s1.h5")
    write(tmp_path / "in" / "s2.h5", features=FEATURES[:, :4])
    status = take(store, tmp_path / "in")
    assert "5 in 1 (s1.h5); 4 in 1 (s2.h5). They are of different encoders" in str(status.failed)
    assert status.done == 0
    write(tmp_path / "in" / "s3.h5")
    status = take(store, tmp_path / "in")
    assert status.failed == {
        "s2": "s2.h5 has features of width 4, but most files have 5: is it of another encoder?"
    }
    assert status.result is not None
    assert status.result["slides"] == 2


def test_the_width_of_a_known_encoder_is_checked(store: DirectoryStore, tmp_path: Path) -> None:
    write(tmp_path / "in" / "s1.h5")
    status = take(store, tmp_path / "in", "hoptimus0")
    assert "width 5, but those of hoptimus0 have 1536" in status.failed["s1"]


def test_folders_of_trident_and_clam_are_searched(store: DirectoryStore, tmp_path: Path) -> None:
    job = tmp_path / "job" / "20x_64px_0px_overlap"
    write(job / "patches" / "s1_patches.h5", features=None, **TRIDENT)
    write(job / "slide_features_titan" / "s1.h5", features=FEATURES[0])
    write(job / "features_uni_v1" / "s1.h5", **TRIDENT)
    assert find_features(tmp_path / "job", "mine") == job / "features_uni_v1"
    write(job / "features_conch_v1" / "s1.h5", **TRIDENT)
    assert find_features(tmp_path / "job", "conch_v1") == job / "features_conch_v1"
    with pytest.raises(InputError, match=r"several folders.*features_conch_v1, .*features_uni_v1"):
        find_features(tmp_path / "job", "mine")
    write(tmp_path / "clam" / "h5_files" / "s1.h5")
    (tmp_path / "clam" / "pt_files").mkdir()
    (tmp_path / "clam" / "pt_files" / "s1.pt").touch()
    assert take(store, tmp_path / "clam").state == "done"
    with pytest.raises(InputError, match=r"\.pt files only"):
        find_features(tmp_path / "clam" / "pt_files", "mine")
    with pytest.raises(InputError, match=r"nowhere is not there"):
        find_features(tmp_path / "nowhere", "mine")


def test_another_content_is_another_job(store: DirectoryStore, tmp_path: Path) -> None:
    write(tmp_path / "in" / "s1.h5")
    take(store, tmp_path / "in")
    write(tmp_path / "in" / "s1.h5", features=FEATURES * 2)
    take(store, tmp_path / "in")
    assert np.array_equal(taken(store)[1], FEATURES * 2)


def test_a_file_that_changes_during_the_import_is_refused(
    store: DirectoryStore, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "s1.h5")
    request = EmbedRequest(
        cohort="c", encoder="mine", imported=str(tmp_path / "in"), imported_sha256={"s1.h5": "0"}
    )
    ledger = Ledger(store)
    status = run_job(ledger, EmbedStage(), ledger.submit(request))
    assert "s1.h5 has changed since the import began" in status.failed["s1"]
