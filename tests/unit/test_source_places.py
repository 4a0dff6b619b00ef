"""Tables and projects whose files, or folders, have moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heterotissue.sources.listed import find_by_table
from tests.source_files import listed, slide, sources, taken


def test_a_row_of_a_missing_file_takes_no_other_folders_file(tmp_path: Path) -> None:
    rows = "path,patient\nP002/HE1.tif,P002\nP004/HE2.tif,P004\n"
    found = listed(tmp_path, rows, "P001/HE1.tif", "P004/HE2.tif")
    assert [entry.patient for entry in found.slides] == ["P004"]
    (refused,) = found.refused
    assert refused.path == "t.csv, row 2"
    assert refused.reason == (
        "P002/HE1.tif is not there; P001/HE1.tif, of the same name, may be another slide: if it is "
        "meant, write its path"
    )
    # Patients are numbered within sites.
    found = listed(tmp_path, "path\n/x/siteB/7/a.svs\n", "siteA/7/a.svs")
    assert not found.slides
    project = {"images": [{"serverBuilder": {"builderType": "uri", "uri": "file:/x/P2/HE1.tif"}}]}
    found = listed(tmp_path, json.dumps(project), name="t/project.qpproj")
    assert not found.slides
    assert "P001/HE1.tif, of the same name, may be" in found.refused[0].reason


@pytest.mark.parametrize(
    ("stated", "file"),
    [
        ("/data/x/P001/HE1.tif", "P001/HE1.tif"),
        ("C:\\x\\P001\\HE1.tif", "P001/HE1.tif"),
        ("P001/HE1.tif", "deep/P001/HE1.tif"),
        ("C:\\scans\\HE1.tif", "HE1.tif"),
        ("HE1.tif", "P001/HE1.tif"),
        ("/old/in/HE1.tif", "HE1.tif"),
    ],
)
def test_moved_files_are_found_in_their_folders(tmp_path: Path, stated: str, file: str) -> None:
    assert taken(listed(tmp_path, f"path\n{stated}\n", file)) == [file]


def test_of_files_of_one_name_that_in_the_stated_folders_is_taken(tmp_path: Path) -> None:
    files = ["A/P1/x.tif", "B/P1/x.tif"]
    assert taken(listed(tmp_path, "path\n/old/B/P1/x.tif\n", *files)) == ["B/P1/x.tif"]
    found = listed(tmp_path, "path\nP1/x.tif\n")
    assert found.refused[0].reason.endswith("may be any of A/P1/x.tif, B/P1/x.tif: give its path")


@pytest.mark.parametrize(
    ("rows", "files"),
    [
        ("/old/a/x.tif\n/old/b/x.tif", ["x.tif"]),  # which of them?
        ("/old/a/x.tif", ["x.tif", "other/x.tif"]),
        ("/old/a/x.tif\n/old/in/y.tif", ["x.tif"]),  # the folder is that of the other row
    ],
)
def test_a_renamed_folder_is_not_guessed(tmp_path: Path, rows: str, files: list[str]) -> None:
    found = listed(tmp_path, f"path\n{rows}\n", *files)
    assert not found.slides
    assert "may be another slide" in found.refused[0].reason


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("/data/svs/", ["0a1b/x1.tif", "2c3d/x2.tif"]),  # of the GDC, one folder each
        ("scans/", ["slides/x1.tif", "slides/x2.tif"]),
        ("C:\\in\\", ["deep/x1.tif", "x2.tif"]),
    ],
)
def test_a_folder_that_all_rows_state_tells_nothing(
    tmp_path: Path, folder: str, files: list[str]
) -> None:
    rows = f"path,patient\n{folder}x1.tif,P1\n{folder.upper()}x2.tif,P2\n"
    assert taken(listed(tmp_path, rows, *files)) == files
    made = sources(tmp_path, tmp_path / "in", patient=str(tmp_path / "t/t.csv"))
    assert {item.slide: item.patient for item in made.slides} == {"x1": "P1", "x2": "P2"}


@pytest.mark.parametrize(
    ("rows", "files"),
    [
        ("P2/x1.tif\nP2/x2.tif", ["P1/x1.tif"]),  # numbers
        ("P2/x1.tif\nP2/x2.tif", ["P1/scans/x1.tif"]),
        ("P2/scans/x1.tif\nP2/scans/x2.tif", ["P1/x1.tif"]),
        ("/old/x1.tif\n/old/x2.tif", ["ann/x1.tif", "eve/x1.tif"]),  # which of them?
        ("ann/x1.tif\nbob/x2.tif", ["eve/x1.tif"]),  # folders tell slides apart
        ("/a/scans/x1.tif\n/b/scans/x2.tif", ["c/x1.tif"]),
        ("/a/P7/x1.tif\n/a/P7/x2.tif", ["b/P7/x1.tif"]),
        ("ann/x1.tif", ["eve/x1.tif"]),  # one row alone tells nothing of folders
    ],
)
def test_folders_that_may_tell_slides_apart_must_agree(
    tmp_path: Path, rows: str, files: list[str]
) -> None:
    found = listed(tmp_path, f"path\n{rows}\n", *files)
    assert not found.slides
    assert "may be another slide" in found.refused[0].reason


def test_drives_and_folders_in_other_capitals_are_one(tmp_path: Path) -> None:
    rows = "C:\\Scans\\1.tif\nc:\\scans\\1.tif\nC:\\scans\\2.tif\n"
    assert taken(listed(tmp_path, f"path\n{rows}", "1.tif", "2.tif")) == ["1.tif", "2.tif"]
    rows = "C:\\P1\\HE.tif\nC:\\p2\\HE.tif\n"
    files = ["p1/HE.tif", "P2/HE.tif"]
    (tmp_path / "in").rename(tmp_path / "before")
    assert taken(listed(tmp_path, f"path\n{rows}", *files)) == files


def test_a_table_may_lie_in_the_slides_own_folder_that_was_renamed(tmp_path: Path) -> None:
    for name in ("1.tif", "2.tif", "1.png"):  # a picture of the first
        slide(tmp_path / "Study" / name)
    table = tmp_path / "Study/t.csv"
    table.write_text("path\nD:\\Studie\\1.tif\nD:\\Studie\\2.tif\n")
    for folders in ([], [tmp_path / "Study"]):
        assert taken(find_by_table(table, folders, None)) == ["1.tif", "2.tif"]
    slide(tmp_path / "Study/deep/2.tif")
    found = find_by_table(table, [tmp_path / "Study"], None)
    assert taken(found) == ["1.tif"]
    assert "may be another slide" in found.refused[0].reason


@pytest.mark.parametrize(
    ("project", "place"), [("", ""), ("", "slides/"), ("QuPath/", "slides/"), ("QuPath/", "")]
)
def test_a_project_and_its_images_may_move_in_a_folder_that_is_renamed(
    tmp_path: Path, project: str, place: str
) -> None:
    images = [f"file:/D:/Study/{place}{n}.tif" for n in (1, 2)]
    text = {
        "uri": f"file:/D:/Study/{project}project.qpproj",
        "images": [{"serverBuilder": {"builderType": "uri", "uri": uri}} for uri in images],
    }
    files = [slide(tmp_path / f"New/{place}{n}.tif") for n in (1, 2)]
    file = slide(tmp_path / f"New/{project}project.qpproj", json.dumps(text))
    assert [entry.path for entry in find_by_table(file, [], None).slides] == files
    files[0].unlink()
    found = find_by_table(file, [], None)
    assert [entry.path for entry in found.slides] == files[1:]
    assert "1.tif is not there" in found.refused[0].reason


def test_a_folder_whose_name_differs_in_its_number_is_another(tmp_path: Path) -> None:
    for name in ("x.tif", "scans/y.tif"):
        slide(tmp_path / "P001" / name)
    (tmp_path / "t.csv").write_text("path\n/old/P002/x.tif\n/old/P002/y.tif\n")
    assert not find_by_table(tmp_path / "t.csv", [tmp_path / "P001"], None).slides
