"""Ingest: tiles that were cut elsewhere become regions, by their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from heterotissue.cli.app import app
from heterotissue.sources import tile_table
from services.ingest import tile_tables
from services.ingest.stage import IngestStage
from services.ingest.tile_tables import read_tiles
from services.ingest.tiles import cut_tiles, given_splits, tile_patients
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest
from shared.contracts.regions import RegionRule
from shared.contracts.tiles import TILE_COLUMNS
from shared.errors import InputError
from shared.imaging import masks, tile_images
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.jobs import JobStatus, Ledger, run_job
from shared.storage import DirectoryStore
from shared.storage.formats import table_bytes

CLASSES = Classes.of("stroma", "tumor")


def write_tiles(folder: Path, binary: bool = True) -> None:
    """Tiles of two classes in folders of splits and classes, each with its mask."""
    rng = np.random.default_rng(0)
    for split, patient in (("train", 1), ("train", 2), ("test", 3)):
        for kind in CLASSES.names[1:]:
            below = folder / split / kind
            below.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            mask = np.zeros((96, 96), np.uint8)
            mask[:, 48:] = 255 if binary else 1
            Image.fromarray(image).save(below / f"p{patient}-1.png")
            Image.fromarray(mask).convert("1" if binary else "L").save(
                below / f"p{patient}-1.mask.png"
            )


def ingest_tiles(
    store: DirectoryStore, folder: Path, classes: Classes, **options: Any
) -> JobStatus:
    settings = {"masks": None, "slide_pattern": r"p(\d+)", "mpp": 0.5} | options
    request = IngestRequest(
        cohort="t", classes=classes,
        tiles=tile_table(store, "t", folder, classes=classes, **settings).key,
        regions=RegionRule(
            size=32, mpp=1.0, low=0, high=1, min_classes=1, min_tissue=0, count_background=True,
            overlap=0,
        ),
    )  # fmt: skip
    ledger = Ledger(store)
    return run_job(ledger, IngestStage(), ledger.submit(request))


def test_tiles_become_regions_by_the_classes_of_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "tiles")
    store = DirectoryStore(tmp_path / "store")
    classes = Classes.of("stroma", "tumor", exhaustive=True)
    # Nothing of tables and tiles is parsed in this process, but in the sandbox.
    for module, name in (
        (tile_tables, "parse"),
        (tile_images, "read_upright"),
        (masks, "_open_image"),
    ):
        monkeypatch.setattr(module, name, None)
    assert ingest_tiles(store, tmp_path / "tiles", classes).state == "done"
    record = load_region_set(store, "t")
    assert {part.slide: part.split for part in record.slides} == {
        "1": "train", "2": "train", "3": "test",
    }  # fmt: skip
    regions = list(RegionIndex(store, record, "train", "test"))
    assert len({region.key for region in regions}) == len(regions) == 6  # equal names, all kept
    assert all(region.image.shape == (32, 32, 3) for region in regions)
    assert sorted(int(region.labels.max()) for region in regions) == [1, 1, 1, 2, 2, 2]
    assert all((region.labels[:, :15] == 0).all() for region in regions)


def test_folders_are_renamed_to_classes(tmp_path: Path) -> None:
    folder, store = tmp_path / "tiles", DirectoryStore(tmp_path / "store")
    write_tiles(folder)
    for split in ("train", "test"):
        (folder / split / "tumor").rename(folder / split / "Adenocarcinoma")
    with pytest.raises(InputError, match="folders of some tiles have the name of a class"):
        ingest_tiles(store, folder, CLASSES)
    names = {"adenocarcinoma": "tumor", "7": "stroma"}
    command = f"tiles {folder} --cohort t --classes stroma,tumor --mpp 0.5 --region-size 32"
    renames = [f"--rename={old}={new}" for old, new in names.items()]
    run = ["--slide", r"p(\d+)", "--region-mpp", "1", "--store", str(tmp_path / "store")]
    found = CliRunner().invoke(app, [*command.split(), *renames, *run])
    assert found.exit_code == 0, found.output
    assert "renamed, but in no annotation" in found.output
    assert "adenocarcinoma" not in found.output
    regions = list(RegionIndex(store, load_region_set(store, "t"), "train", "test"))
    assert sorted(int(region.labels.max()) for region in regions) == [1, 1, 1, 2, 2, 2]
    with pytest.raises(InputError, match=r"'Adenocarcinoma', in this or another .* two classes"):
        ingest_tiles(store, folder, CLASSES, label_names=names | {"Adenocarcinoma": "stroma"})


def test_the_names_of_folders_may_be_swapped(tmp_path: Path) -> None:
    folder, store = tmp_path / "tiles", DirectoryStore(tmp_path / "store")
    write_tiles(folder)
    labels = []
    for names in ({}, {"stroma": "tumor", "tumor": "stroma"}):
        key = tile_table(
            store, "t", folder, masks=None, classes=CLASSES, slide_pattern=None, mpp=0.5,
            label_names=names,
        ).key  # fmt: skip
        rows = [row for tiles in read_tiles(store, key).values() for row in tiles]
        labels.append({Path(row["image"]).parent.name: row["label"] for row in rows})
    assert labels == [{"stroma": 1, "tumor": 2}, {"stroma": 2, "tumor": 1}]


def test_tiles_with_one_class_need_no_folders(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", binary=False)
    store = DirectoryStore(tmp_path / "store")
    assert ingest_tiles(store, tmp_path / "tiles", Classes.of("gland")).state == "done"
    regions = list(RegionIndex(store, load_region_set(store, "t"), "test"))
    assert [set(np.unique(region.labels)) for region in regions] == [{0, 1}, {0, 1}]


def test_a_tile_of_floats_is_not_called_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    write_tiles(folder)
    square, beside = np.zeros((96, 96, 3), np.float32), folder / "train/stroma"
    for name, kind in (("float", np.float32), ("deep", np.uint16)):
        tifffile.imwrite(beside / f"{name}.tiff", square.astype(kind), photometric="rgb")
        Image.new("L", (96, 96)).save(beside / f"{name}_mask.png")
    found = tile_table(
        DirectoryStore(tmp_path / "store"), "t", folder, masks=None, classes=CLASSES,
        slide_pattern=None, mpp=0.5,
    )  # fmt: skip
    ((refused),) = found.refused
    assert refused.path == "train/stroma/float.tiff"
    assert "has float32 samples" in refused.reason
    assert "8 bits per channel" in refused.reason
    assert found.tiles == 7


def test_bad_tiles_are_named(tmp_path: Path) -> None:
    folder, store = tmp_path / "tiles", DirectoryStore(tmp_path / "store")
    write_tiles(folder)
    with pytest.raises(InputError, match="does not fit the pattern"):
        ingest_tiles(store, folder, CLASSES, slide_pattern=r"case(\d+)")
    with pytest.raises(InputError, match=r"'1' are in the splits"):
        given_splits({"1": [{"split": "train"}, {"split": "test"}]})
    with pytest.raises(InputError, match="tiles of '1' are of the patients 'P1', 'P2'"):
        tile_patients({"1": [{"patient": "P1"}, {"patient": None}, {"patient": "P2"}]})
    assert tile_patients({"1": [{"patient": None}, {"patient": "P1"}, {"patient": "p1"}]}) == {
        "1": "p1"
    }
    small = ingest_tiles(store, folder, CLASSES, mpp=0.2)
    assert "smaller than a region" in next(iter(small.failed.values()))
    Image.new("L", (8, 8)).save(folder / "train/stroma/p1-1.mask.png")
    status = ingest_tiles(store, folder, CLASSES)
    assert status.state == "done"
    assert status.result is not None
    assert status.result["regions"] == 5
    ((tile, reason),) = status.result["left_out"].items()
    assert tile.endswith("stroma/p1-1.png")
    assert "both must have the same size" in reason


def test_tiles_that_cannot_be_used_are_refused_before_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "crc"
    write_tiles(folder, binary=False)
    other = folder / "test/stroma/p3-1.png"
    Image.new("RGB", (64, 96)).save(other)
    for name in ("p3-2.png", "p3-2.mask.png"):  # what is tested on may not be trained on
        source = folder / "test/tumor" / name.replace("-2", "-1")
        (folder / "train/tumor" / name).write_bytes(source.read_bytes())
    made = tile_table(
        DirectoryStore(tmp_path / "store"), "t", folder, masks=None, classes=CLASSES,
        slide_pattern=r"p\d+-\d+", mpp=0.5, region_size=48, region_mpp=0.75,
    )  # fmt: skip
    reasons = {item.path: item.reason for item in made.refused}
    assert set(reasons) == {"test/stroma/p3-1.png", "train/tumor/p3-2.png"}
    assert (
        "a side of 43 px at 0.75 µm/px, smaller than a region of 48"
        in reasons["test/stroma/p3-1.png"]
    )
    assert "another mask, class, patient or split" in reasons["train/tumor/p3-2.png"]


def test_real_tiles_are_split_by_patient(real_data: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    names = (
        "normal",
        "polyp",
        "low_grade_in",
        "high_grade_in",
        "serrated_adenoma",
        "adenocarcinoma",
    )
    classes = Classes.of(*names, exhaustive=True)
    key = tile_table(
        store, "t", real_data / "ebhi_seg", masks=None, classes=classes,
        slide_pattern=r"GT\D*(\d+)", mpp=0.5,
    ).key  # fmt: skip
    patients = read_tiles(store, key)
    splits = list(given_splits(patients).values())
    assert {split: splits.count(split) for split in set(splits)} == {
        "train": 165, "val": 30, "test": 53,
    }  # fmt: skip
    few = dict(list(patients.items())[:2])
    rule = RegionRule(
        size=128, mpp=0.875, low=0, high=1, min_classes=1, min_tissue=0, count_background=True
    )
    for slide, rows in few.items():
        assert cut_tiles(store, "t", slide, rows, classes, rule).regions == len(rows)


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        ("slides/x/annotation/t.parquet", "/etc/hostname", "by their keys"),
        ("slides/x/annotation/t.parquet", "../beta/a.png", "by their keys"),
        ("slides/x/annotation/t.parquet", "tenants/beta/slides/s/thumbnail.png", "by their keys"),
        ("tiles/t.parquet", "tenants/beta/slides/s/thumbnail.png", "by their keys"),
        ("tiles/t.parquet", None, "without an image or a mask"),
    ],
)
def test_a_table_of_tiles_names_its_authors_files_only(
    tmp_path: Path, table: str, name: str | None, said: str
) -> None:
    store = DirectoryStore(tmp_path)
    row = {"slide": "s", "image": "sources/a/a.png", "mask": name, "mpp": 0.5}
    store.put(table, table_bytes(pa.Table.from_pylist([row], schema=TILE_COLUMNS)))
    with pytest.raises(InputError, match=said):
        read_tiles(store, table)
    store.put(table, b"PAR1 no table")
    with pytest.raises(InputError, match="is not a table of tiles"):
        read_tiles(store, table)


@pytest.mark.parametrize("slide", ["../x", "a b", "plan", "finish", "", "a" * 129])
def test_a_table_of_tiles_names_slides_as_the_store_can(tmp_path: Path, slide: str) -> None:
    store, key = DirectoryStore(tmp_path), "tiles/t.parquet"
    row = {"slide": slide, "image": "a.png", "mask": "m.png", "mpp": 0.5}
    store.put(key, table_bytes(pa.Table.from_pylist([row], schema=TILE_COLUMNS)))
    with pytest.raises(InputError, match=r"t\.parquet: '.*' is no name of a slide"):
        read_tiles(store, key)


def test_a_tile_that_was_saved_again_is_found_in_the_other_split(tmp_path: Path) -> None:
    folder, store = tmp_path / "tiles", DirectoryStore(tmp_path / "store")
    write_tiles(folder)
    status = ingest_tiles(store, folder, CLASSES)
    assert status.result is not None
    assert "cautions" not in status.result
    for name in ("p3-1.png", "p3-1.mask.png"):
        with Image.open(folder / "test/tumor" / name) as image:
            image.save(folder / "train/tumor" / name.replace("p3", "p4"), compress_level=1)
    status = ingest_tiles(store, folder, CLASSES)
    assert status.result is not None
    (caution,) = status.result["cautions"]
    assert caution.startswith(
        "1 regions have the same pixels in two splits (4 (train) and 3 (test)"
    )
    assert load_region_set(store, "t").cautions == (caution,)


def test_a_tile_of_several_pictures_is_refused(tmp_path: Path) -> None:
    one, other = (Image.new("RGB", (64, 64), color) for color in ("white", "pink"))
    for kind in ("gif", "png", "webp", "tiff"):
        one.save(tmp_path / f"a.{kind}", save_all=True, append_images=[other])
        with pytest.raises(InputError, match=r"animated|holds 2 images of 64×64 px"):
            tile_images.read_image(tmp_path / f"a.{kind}")
    one.save(tmp_path / "levels.tiff", save_all=True, append_images=[one.resize((32, 32))])
    assert tile_images.read_image(tmp_path / "levels.tiff").pixels.shape == (64, 64, 3)
