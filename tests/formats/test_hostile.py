"""Small files that would hold a worker for long, take its memory, or make it open other files."""

from __future__ import annotations

import math
import os
import struct
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from heterotissue.sources.listed import find_by_table
from services.ingest.annotations.outlines import polygon
from services.ingest.tile_tables import read_tiles
from shared import features
from shared.contracts.tiles import TILE_COLUMNS
from shared.errors import InputError
from shared.imaging.label_map import LabelMap, write_label_map
from shared.imaging.pictures import check_jpeg
from shared.imaging.tiff_facts import inspect
from shared.storage import DirectoryStore
from shared.storage.formats import table_bytes


def test_the_files_beside_a_jpeg_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64)).save(path)
    beside = [tmp_path / f"a.jpg{ending}" for ending in (".msk", ".aux.xml", ".ovr")]
    for file in beside:
        file.write_bytes(b"II*\0")
        os.utime(file, ns=(0, 10**9))  # a later reading is seen
    check_jpeg(path)
    assert [file.stat().st_atime_ns for file in beside] == [0, 0, 0]


def test_a_ring_of_directories_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(3):
            file.write(np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1]
        count = len(last.tags)
    data = bytearray(path.read_bytes())
    at = last.offset + 2 + 12 * count
    data[at : at + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="directories cannot be read"):
        inspect(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("slide", "x" * 5000, "a text of 5,000 bytes in 'slide'"),
        ("mpp", 5000.0, "5000.0 µm/px, which no tile has"),
        ("mpp", math.nan, "which no tile has"),
        ("mpp", None, "which no tile has"),
    ],
)
def test_a_table_of_tiles_states_nothing_absurd(
    tmp_path: Path, field: str, value: object, said: str
) -> None:
    store = DirectoryStore(tmp_path)
    row = {"slide": "s", "image": "sources/a/a.png", "mask": "sources/a/b.png", "mpp": 0.5}
    table = pa.Table.from_pylist([row | {field: value}], schema=TILE_COLUMNS)
    store.put("tiles/t.parquet", table_bytes(table))
    with pytest.raises(InputError, match=said):
        read_tiles(store, "tiles/t.parquet")


def test_an_outline_that_crosses_itself_everywhere_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tangle = [tuple(point) for point in rng.uniform(0, 1000, (2000, 2))]
    with pytest.raises(InputError, match="may cross itself"):
        polygon(tangle)
    bow = [(0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 10.0)]
    assert polygon(bow).area == pytest.approx(50)


def test_a_features_file_that_hdf5_never_ends_to_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "CPU_SECONDS", 0.5)
    path = tmp_path / "s1.h5"
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", data=np.arange(32).reshape(16, 2) * 64)
        coords.attrs.update({"patch_size": 64, "patch_size_level0": 64, "name": "s1"})
        file["features"] = np.ones((16, 5), np.float32)
    data = path.read_bytes()
    at = data.index(b"s1", data.index(b"GCOL")) + 1
    path.write_bytes(data[:at] + b"4294967296" + data[at + 1 :])
    with pytest.raises(InputError, match=r"s1\.h5 cannot be read: that takes more computing"):
        features.read_features(path)


@pytest.mark.parametrize("at", range(0, 555, 3))
def test_a_damaged_label_map_is_read_or_refused(tmp_path: Path, at: int) -> None:
    path = tmp_path / "labels.tif"
    write_label_map(path, iter([np.ones((40, 60), np.uint8)]), 60, 40, 1.0)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 64
    path.write_bytes(data)
    with suppress(InputError), LabelMap(path) as labels:
        assert labels.width * labels.height <= 1 << 40
        if labels.width * labels.height < 1 << 20:
            labels.whole()


def test_a_label_map_whose_tiles_begin_at_fractions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.tif"
    write_label_map(path, iter([np.ones((40, 60), np.uint8)]), 60, 40, 1.0)
    entry = struct.pack("<HH", 324, 4)  # TileOffsets, as integers
    data = path.read_bytes()
    assert data.count(entry) == 1
    path.write_bytes(data.replace(entry, struct.pack("<HH", 324, 11)))
    with pytest.raises(InputError, match="is no label map"):
        LabelMap(path)


def test_a_table_with_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(f"slide,path\na,{'x' * 300}.svs\n")
    found = find_by_table(table, [], None)
    assert not found.slides
    assert len(found.refused) == 1
