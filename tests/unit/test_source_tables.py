"""Tables of slides: how they spell files and resolutions."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from heterotissue.sources import find_slides
from heterotissue.sources.listed import find_by_table
from heterotissue.sources.places import Places
from heterotissue.sources.table_values import mpp_of
from heterotissue.sources.tables import Table, stated_files
from shared.errors import InputError
from tests.source_files import listed, slide, sources, taken


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
    places = Places(stated_files(read.rows), [])

    def patient(name: str) -> str | None:
        row = read.row_of(tmp_path / name, Path(name), places)
        return row["patient"] if row else None

    assert patient("12.tif") is None
    assert patient("12.1.tif") == "P5"
    assert patient("13.tif") == "P6"  # of another format
    with pytest.raises(InputError, match=r"several rows of 14\.tif"):
        read.row_of(tmp_path / "14.tif", Path("14.tif"), places)
    assert read.headings_but("name", "patient") == ["split"]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        slide(tmp_path / f"in/{name}.svs")
    table = tmp_path / "p.csv"
    table.write_text("slide,patient,split,age\na,P1,test,9\nb,P2,train,8\n")
    made = sources(tmp_path, tmp_path / "in", patient=str(table))
    assert any("only slides and patients are read, not split, age" in note for note in made.notes)


def test_names_in_another_unicode_form_are_the_same(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "Müller/Ödem.tif") for form in ("NFC", "NFD"))
    for stated, file in ((one, two), (two, one)):
        name = Path(stated).name
        slide(tmp_path / "in" / file)
        rows = [f"path,patient\n{path},P1\n" for path in (stated, f"/old/{stated}", name)]
        rows.append(f"slide,patient\n{Path(name).stem},P1\n")
        for text in rows:
            assert taken(listed(tmp_path, text)) == [file]
            made = sources(tmp_path, tmp_path / "in", patient=str(tmp_path / "t/t.csv"))
            assert [item.patient for item in made.slides] == ["P1"]
        beside = (tmp_path / "in" / file).with_name("t.csv")
        beside.write_text(f"path,labels\n{name},{Path(name).stem}.xml\n")
        drawn = slide((tmp_path / "in" / file).with_suffix(".xml"))
        assert [entry.labels for entry in find_by_table(beside, [], None).slides] == [drawn]
        shutil.rmtree(tmp_path / "in")


def test_the_name_of_a_slide_has_no_suffix_of_ome(tmp_path: Path) -> None:
    text = "slide,patient\na,P1\nb.ome,P2\n"
    assert taken(listed(tmp_path, text, "a.ome.tiff", "b.ome.tif")) == ["a.ome.tiff", "b.ome.tif"]
    found = listed(tmp_path, text, "a.svs")
    assert "a may be any of" in found.refused[0].reason


def test_a_table_of_patients_tells_nothing_of_other_folders_files(tmp_path: Path) -> None:
    for file in ("P001/HE1.tif", "P003/HE1.tif", "P002/HE2.tif"):
        slide(tmp_path / "in" / file)
    table = tmp_path / "p.csv"
    table.write_text("path,patient\nP001/HE1.tif,P001\nP002/HE2.tif,P002\n")
    made = sources(tmp_path, tmp_path / "in", patient=str(table))
    assert [item.patient for item in made.slides] == ["P001", "P002"]
    (refused,) = made.refused
    assert refused.path.endswith("P003/HE1.tif")
    assert "tells no patient of it" in refused.reason
    table.write_text("slide,patient\nHE1,P001\nHE2,P002\n")
    made = sources(tmp_path, tmp_path / "in", patient=str(table))
    assert [item.patient for item in made.slides] == ["P002"]
    for item in made.refused:
        assert "one row of HE1.tif, but several files have that name: give their" in item.reason


def test_slides_that_are_given_one_by_one_have_folders_too(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("path,patient\nP001/HE1.tif,P001\n")
    for file in ("P001/HE1.tif", "P003/HE1.tif"):
        slide(tmp_path / "in" / file)
    alone = [tmp_path / f"in/{file}" for file in ("P001/HE1.tif", "P003/HE1.tif")]
    assert [item.patient for item in sources(tmp_path, *alone, patient=str(table)).slides] == [
        "P001"
    ]


def test_rows_without_a_patient_beside_rows_with_one_are_refused(tmp_path: Path) -> None:
    names = ("alder", "birch", "cedar", "TCGA-AA-0001-DX1")
    for name in names:
        slide(tmp_path / f"{name}.svs")
    table = tmp_path / "t.csv"
    table.write_text("patient;path\nP1;alder.svs\n;birch.svs\n;cedar.svs\n;TCGA-AA-0001-DX1.svs\n")
    made = sources(tmp_path, table)
    assert {item.slide: item.patient for item in made.slides} == {
        "alder": "P1", "TCGA-AA-0001-DX1": "TCGA-AA-0001",
    }  # fmt: skip
    assert [item.path for item in made.refused] == ["t.csv, row 3", "t.csv, row 4"]
    for item in made.refused:
        assert "states no patient, as other rows do" in item.reason
        assert "fill the cells down" in item.reason
    table.write_text("patient;path\n;birch.svs\n;cedar.svs\n")
    assert len(sources(tmp_path, table).slides) == 2


def test_rows_without_a_split_beside_rows_with_one_are_refused(tmp_path: Path) -> None:
    for name in "abcde":
        slide(tmp_path / f"{name}.svs")
    table = tmp_path / "t.csv"
    table.write_text("path,split\na.svs,train\nb.svs,\nc.svs,\nd.svs,test\n")
    made = sources(tmp_path, table)
    assert {item.slide: item.split for item in made.slides} == {"a": "train", "d": "test"}
    assert [item.path for item in made.refused] == ["t.csv, row 3", "t.csv, row 4"]
    for item in made.refused:
        assert "states no split, as other rows do" in item.reason
        assert "fill the cells down" in item.reason
    table.write_text("path,split\na.svs,\nb.svs,\n")
    assert len(sources(tmp_path, table).slides) == 2


def test_a_split_of_the_patient_or_of_the_folder_counts_for_a_row_without_one(
    tmp_path: Path,
) -> None:
    for name in "abcd":
        slide(tmp_path / f"{name}.svs")
    table = tmp_path / "t.csv"
    rows = "a.svs,P 1,train\nb.svs,p 1,\nc.svs,P2,\nd.svs,P3,test\n"
    table.write_text(f"path,patient,split\n{rows}")
    made = sources(tmp_path, table)
    assert [item.slide for item in made.slides] == ["a", "b", "d"]
    assert [item.path for item in made.refused] == ["t.csv, row 4"]
    for name in ("in/a", "in/test/b"):
        slide(tmp_path / f"{name}.svs")
    table.write_text("path,split\nin/a.svs,train\nin/test/b.svs,\n")
    made = sources(tmp_path, table)
    assert {item.slide: item.split for item in made.slides} == {"a": "train", "b": "test"}


def test_folders_of_several_slides_may_be_patients(tmp_path: Path) -> None:
    for file in ("ann/alder.svs", "ann/birch.svs", "eve/cedar.svs", "eve/elm.svs"):
        slide(tmp_path / "in" / file)
    (note,) = (note for note in sources(tmp_path, tmp_path / "in").notes if "patient" in note)
    assert "the patients of 4 slides are not known" in note
    assert "If a folder is a patient's (ann, eve)" in note
    rule = note.partition("--patient '")[2].partition("'")[0]
    made = sources(tmp_path, tmp_path / "in", patient=rule)
    assert [item.patient for item in made.slides] == ["ann", "ann", "eve", "eve"]
    assert not any("not known" in note for note in made.notes)
    (tmp_path / "in/eve/elm.svs").unlink()
    assert not any("not known" in note for note in sources(tmp_path, tmp_path / "in").notes)


@pytest.mark.parametrize(
    "header",
    ["Image\tObject type\tName\tParent\tROI", "Image\tName\tClass\tParent\tROI"],
)
def test_measurements_of_qupath_name_slides_by_their_files(tmp_path: Path, header: str) -> None:
    rows = "".join(f"{name}.tif\tRootObject\tRoot object (Image)\t\n" for name in "ab")
    found = listed(tmp_path, f"{header}\n{rows}", "a.tif", "b.tif", name="t/measurements.tsv")
    assert [entry.name for entry in found.slides] == [None, None]
    assert not found.refused


def test_numbers_of_a_patients_slides_get_the_patient_in_front(tmp_path: Path) -> None:
    files = [f"{name}.tif" for name in "abc"]
    rows = "patient,slide,file\nQ0,1,a.tif\nQ0,2,b.tif\nQ1,1,c.tif\n"
    found = listed(tmp_path, rows, *files)
    assert [entry.name for entry in found.slides] == ["Q0-1", "Q0-2", "Q1-1"]
    assert not found.refused
    assert any("such as '1'" in note for note in found.notes)
    found = listed(tmp_path, rows.replace("Q0,2", "Q0,1"))
    assert [entry.name for entry in found.slides] == ["1"]
    assert "gives the name '1' of row 2 again: give each slide a name" in found.refused[0].reason
    assert not any("does not list" in note for note in found.notes)


def test_annotations_of_a_table_may_lie_in_their_own_folder(tmp_path: Path) -> None:
    for name in ("s/a.tif", "ann/a_final.geojson"):
        slide(tmp_path / name)
    table = tmp_path / "t.csv"
    table.write_text("path,annotation\ns/a.tif,a_final.geojson\n")
    with pytest.raises(InputError, match=r"a_final\.geojson is not there \(looked in"):
        find_slides([table])
    (entry,) = find_slides([table], labels=tmp_path / "ann").slides
    assert entry.labels == tmp_path / "ann/a_final.geojson"


def test_pipes_separate_and_headings_are_looked_for(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path|patient\ns/a.tif|Q0\n")
    assert Table.read(table).rows == [(2, {"path": "s/a.tif", "patient": "Q0"})]
    table.write_text("Cohort colon 2021\n\nfilename,patient\na.tif,Q0\n")
    with pytest.raises(InputError, match="Row 3 looks like the headings: delete the rows above"):
        Table.read(table)


def test_the_barcode_of_a_patient_tells_the_site(tmp_path: Path) -> None:
    slide(tmp_path / "in/0001-aaaa.tif")
    table = tmp_path / "t.csv"
    table.write_text("path,PatientID\nin/0001-aaaa.tif,TCGA-A7-1000\n")
    (made,) = sources(tmp_path, table).slides
    assert (made.patient, made.site) == ("TCGA-A7-1000", "A7")
