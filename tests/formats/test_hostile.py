"""Small files that would hold a worker for long, take its memory, or make it open other files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image

from services.ingest.annotations.outlines import polygon
from services.ingest.tile_tables import read_tiles
from shared.contracts.tiles import TILE_COLUMNS
from shared.errors import InputError
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
