"""Tables of slides: how they spell files and resolutions."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterotissue.sources.table_values import mpp_of
from heterotissue.sources.tables import Table, find_by_table
from shared.errors import InputError
from tests.source_files import slide, sources


def test_a_table_that_spells_a_file_otherwise_is_told_its_name(tmp_path: Path) -> None:
    for name in ("in/sA.tif", "in/deep/B.svs", "in/b.xml"):
        slide(tmp_path / name)
    table = tmp_path / "in/t.csv"
    rows = ["SA.TIF", "sa.tiff", "sA", "b.SVS", "c.svs", "sA.tif"]
    table.write_text("path;labels\n" + "".join(f"{row};\n" for row in rows[:-1]) + "sA.tif;B.XML\n")
    found = find_by_table(table, [], None)
    assert not found.slides
    meant = [item.reason.partition(": did you mean ")[2] for item in found.refused]
    assert meant == ["sA.tif?", "sA.tif?", "sA.tif?", "", "", "b.xml?"]
    table.write_text("slide\nSA.TIF\nb\nsA\n")
    found = find_by_table(table, [tmp_path / "in"], None)
    assert [entry.path.name for entry in found.slides] == ["sA.tif"]
    meant = [item.reason.partition(": did you mean ")[2] for item in found.refused]
    assert meant == ["sA.tif?", "deep/B.svs?"]


@pytest.mark.parametrize(
    "text",
    ["0.5", "0,5", "5e-1", "0.5 µm", "0.5\u03bcm", "0.5 um", "0.5um/px", "0.5 µm/px",
     "0.5 UM / Pixel", "0.5 microns per pixel", "0.5 micrometres"],
)  # fmt: skip
def test_a_resolution_may_state_its_unit(text: str) -> None:
    assert mpp_of(text) == 0.5


def test_a_resolution_in_another_unit_is_refused_by_its_name() -> None:
    for text, unit in (("500 nm", "nm"), ("0.0005 mm", "mm"), ("20x", "x"), ("2 px/µm", "px/μm"),
                       ("0.5 µm²", "μm2"), ("0.5 0.5", "0.5")):  # fmt: skip
        with pytest.raises(InputError, match=f"mpp '{text}' is in '{unit}', not in µm per pixel"):
            mpp_of(text)
    for text in ("fine", "µm", "0.5.5", "-0.5", "nan", "0 µm", "1e9", "٠٫٥"):
        with pytest.raises(InputError, match=f"mpp '{text}' is no size of a slide's pixel"):
            mpp_of(text)


def test_a_name_with_a_point_is_that_of_its_own_slide(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("slide,patient,split\n12.1,P5,test\n13.svs,P6,train\n14.tif,P8,\n14,P7,val\n")
    read = Table.read(table)

    def patient(name: str) -> str | None:
        row = read.row_of(tmp_path / name)
        return row["patient"] if row else None

    assert patient("12.tif") is None
    assert patient("12.1.tif") == "P5"
    assert patient("13.tif") == "P6"  # of another format
    with pytest.raises(InputError, match=r"several rows of 14\.tif"):
        read.row_of(tmp_path / "14.tif")
    assert read.headings_but("name", "patient") == ["split"]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        slide(tmp_path / f"in/{name}.svs")
    table = tmp_path / "p.csv"
    table.write_text("slide,patient,split,age\na,P1,test,9\nb,P2,train,8\n")
    made = sources(tmp_path, tmp_path / "in", patient=str(table))
    assert any("only slides and patients are read, not split, age" in note for note in made.notes)
