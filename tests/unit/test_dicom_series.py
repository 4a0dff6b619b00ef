"""DICOM files of one series: one slide, or refused by name, but never dropped silently."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from heterotissue.sources import Found, find_slides
from shared.errors import InputError
from tests.formats.cohort_files import tissue, write_dicom


def level(path: Path, series: str, side: int = 256, patient: str = "") -> Path:
    return write_dicom(path, tissue(side, side), series, patient)


def found_in(folder: Path) -> Found:
    level(folder / "other/o.dcm", "1.2.9")
    found = find_slides([folder])
    assert [entry.path.name for entry in found.slides if entry.path.name == "o.dcm"]
    found.slides = [entry for entry in found.slides if entry.path.name != "o.dcm"]
    return found


def test_levels_of_a_series_in_several_folders_are_refused_by_name(tmp_path: Path) -> None:
    level(tmp_path / "10x/a.dcm", "1.2.1", 256)
    level(tmp_path / "40x/a.dcm", "1.2.1", 512)
    level(tmp_path / "5x/a.dcm", "1.2.1", 128)
    found = found_in(tmp_path)
    assert not found.slides
    (refused,) = found.refused
    assert refused.path == str(tmp_path / "10x/a.dcm")
    assert f"{tmp_path / '40x/a.dcm'} lies in another folder: put the files" in refused.reason


@pytest.mark.parametrize("places", [("P1/x1.dcm", "P2/x2.dcm"), ("x1.dcm", "x2.dcm")])
def test_a_series_of_two_patients_is_refused(tmp_path: Path, places: tuple[str, str]) -> None:
    for number, place in enumerate(places):
        level(tmp_path / place, "1.2.1", patient=f"P{number + 1}")
    found = found_in(tmp_path)
    assert not found.slides
    (refused,) = found.refused
    assert refused.path == str(tmp_path / places[0])
    assert "is of a series of several patients (P1, P2)" in refused.reason
    assert "SeriesInstanceUID of its own" in refused.reason


def test_files_of_one_instance_that_differ_are_refused(tmp_path: Path) -> None:
    file = level(tmp_path / "a.dcm", "1.2.1")
    (tmp_path / "b.dcm").write_bytes(file.read_bytes()[:-2] + b"\1\2")
    with pytest.raises(InputError, match=r"a.dcm and b.dcm have one SOPInstanceUID, but differ"):
        find_slides([tmp_path])


def test_copies_of_a_series_in_another_folder_are_taken_once_with_a_note(tmp_path: Path) -> None:
    level(tmp_path / "a/l0.dcm", "1.2.1", 512)
    level(tmp_path / "a/l1.dcm", "1.2.1", 256)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = found_in(tmp_path)
    (entry,) = found.slides
    assert (entry.path, entry.parts) == (tmp_path / "a/l0.dcm", (tmp_path / "a/l1.dcm",))
    assert not found.refused
    note = "skipped 2 copies of DICOM files that lie in another folder: l0.dcm, l1.dcm"
    assert note in found.notes


@pytest.mark.parametrize("names", [("l0.dcm", "l1.dcm"), ("l1.dcm", "l0.dcm")])
def test_files_of_a_series_replace_the_links_to_them(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    large, small = (tmp_path / "real" / name for name in names)
    level(large, "1.2.1", 512)
    level(small, "1.2.1", 256)
    (tmp_path / "all").mkdir()
    for path in (large, small):
        (tmp_path / "all" / path.name).symlink_to(path)
    found = found_in(tmp_path)
    (entry,) = found.slides
    assert (entry.path, entry.parts) == (large, (small,))
    assert not found.refused
