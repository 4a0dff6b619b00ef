"""Finding slides on disk, saying whose they are, and keeping them by content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.tables import Table
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key
from shared.errors import InputError
from shared.storage import DirectoryStore, Store, sha256_file
from tests.source_files import slide, sources


def names_in(paths: list[Path], **options: Any) -> list[str]:
    return [entry.path.name for entry in find_slides(paths, **options).slides]


def test_folders_are_searched_with_all_folders_below_them(tmp_path: Path) -> None:
    slide(tmp_path / "gdc/0a1b/TCGA-AA-0001.svs")
    slide(tmp_path / "gdc/0a1b/logs/TCGA-AA-0001.svs.parcel")
    slide(tmp_path / "gdc/9f/x.NDPI")
    slide(tmp_path / "gdc/9f/.hidden/y.svs")
    slide(tmp_path / "gdc/store/slides/a/labels.tif")
    (tmp_path / "gdc/loop").symlink_to(tmp_path / "gdc", target_is_directory=True)
    slide(tmp_path / "elsewhere/z.svs")
    (tmp_path / "gdc/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = names_in([tmp_path / "gdc"], leave_out=tmp_path / "gdc/store")
    assert sorted(found) == ["TCGA-AA-0001.svs", "x.NDPI", "z.svs"]


def test_what_is_no_slide_is_skipped_with_a_note(tmp_path: Path) -> None:
    slide(tmp_path / "a.svs")
    for name in (
        "._a.svs", ".b.svs", "c.svs.part", "d.svs.crdownload", "e.svs~", "f.svs.zip",
        "a_mask.png", "a_mask.ome.tif", "a-labels.tif", "a.svs.geojson", "a_thumbnail.jpg",
        "g_mask.tif", "n.txt", "a.vsi",
    ):  # fmt: skip
        slide(tmp_path / name)
    found = find_slides([tmp_path])
    assert [entry.path.name for entry in found.slides] == ["a.svs"]
    assert not found.refused
    said = " ".join(found.notes)
    for name in ("._a.svs", ".b.svs", "c.svs.part", "d.svs.crdownload", "e.svs~", "f.svs.zip",
                 "a.vsi"):  # fmt: skip
        assert name in said
    assert "g_mask.tif" in said  # no slide g: it may be a slide
    assert "a_mask.png" not in said
    assert names_in([tmp_path / "g_mask.tif"]) == ["g_mask.tif"]  # named by the user
    assert names_in(sorted(tmp_path.iterdir())) == ["a.svs", "g_mask.tif"]  # as by a shell's *


def test_files_that_cannot_be_read_cost_themselves_alone(tmp_path: Path) -> None:
    good = slide(tmp_path / "good.svs")
    (tmp_path / "dangling.svs").symlink_to("nowhere")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "empty.svs").touch()
    slide(tmp_path / "lfs.svs", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    slide(tmp_path / "half.svs")
    slide(tmp_path / "half.svs.aria2")
    slide(tmp_path / "part.mrxs")
    slide(tmp_path / "other.vsi")
    found = find_slides([tmp_path, tmp_path / "missing.svs"])
    assert [entry.path for entry in found.slides] == [good]
    reasons = {Path(item.path).name: item.reason for item in found.refused}
    expected = {
        "dangling.svs": "link to a missing file", "loop.svs": "loop of links",
        "pipe.svs": "is no file", "folder.svs": "is a folder without slides",
        "empty.svs": "0 bytes", "lfs.svs": "git lfs pull", "half.svs": "unfinished download",
        "part.mrxs": "needs its folder part", "other.vsi": "not read, Olympus VSI: convert it",
        "missing.svs": "is not there",
    }  # fmt: skip
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name], name


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_tables_are_read_as_programmes_write_them(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    text = '"Slide\nname";Patient;mpp;split\r\nÄ0;nan;0,25;N/A\r\n"none";P;;\r\n'
    path.write_bytes(text.encode(encoding))
    table = Table.read(path)
    assert table.columns == {"name", "patient", "mpp", "split"}
    assert table.rows == [
        (3, {"name": "Ä0", "mpp": "0,25"}), (4, {"name": "none", "patient": "P"}),
    ]  # fmt: skip


def test_no_slide_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nor in the folders below"):
        find_slides([tmp_path])
    (tmp_path / "a.svs").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"a\.svs is a link to a missing file"):
        find_slides([tmp_path])


def test_parts_of_slides_are_no_slides_but_are_kept_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    parts = {"h.vms": ["h(0,0).jpg", "h(1,0).jpg", "h_map.jpg", "h.opt", "h_macro.jpg"]}
    lines = [
        "[Virtual Microscope Specimen]", "NoLayers=1", "ImageFile=h(0,0).jpg",
        "ImageFile(1,0)=h(1,0).jpg", "MapFile=h_map.jpg", "OptimisationFile=h.opt",
        "MacroImage=h_macro.jpg", "PhysicalWidth=10",
    ]  # fmt: skip
    slide(folder / "h.vms", "\n".join(lines))
    for name in parts["h.vms"]:
        slide(folder / name)
    slide(folder / "m.mrxs")
    slide(folder / "m/Slidedat.ini", "FILE_0 = Data0000.dat\n")
    slide(folder / "m/Data0000.dat")
    slide(folder / "m/preview.jpg")
    slide(folder / "alone.jpg")
    for picture in folder.glob("*.jpg"):
        picture.write_bytes(b"\xff\xd8\xff\xd9")  # the shortest JPEG
    made = sources(tmp_path, folder, keep_source=False)
    assert [item.slide for item in made.slides] == ["alone", "h", "m"]
    store = DirectoryStore(tmp_path / "store")
    for item, files in zip(
        made.slides[1:],
        (
            {"h.vms", *parts["h.vms"][:-1]},  # without pictures that may show the label
            {"m.mrxs", "m/Slidedat.ini", "m/Data0000.dat"},
        ),
        strict=True,
    ):
        place = item.source.rpartition("/")[0]
        assert {key.removeprefix(f"{place}/") for key in store.list(place)} == files
    (folder / "h.opt").unlink()  # without it, OpenSlide reads more slowly
    assert [len(entry.parts) for entry in find_slides([folder]).slides] == [0, 4, 3]
    (folder / "h_map.jpg").unlink()
    found = find_slides([folder])
    assert [entry.path.stem for entry in found.slides] == ["alone", "m"]
    assert "needs h_map.jpg" in found.refused[0].reason


def test_a_changed_companion_changes_the_slide(tmp_path: Path) -> None:
    slide(tmp_path / "in/m.mrxs")
    slide(tmp_path / "in/m/Slidedat.ini", "[DATAFILE]\nFILE_0=Data0000.dat")
    part = slide(tmp_path / "in/m/Data0000.dat", "one")
    before = sources(tmp_path, tmp_path / "in").slides[0]
    part.write_text("two")
    after = sources(tmp_path, tmp_path / "in").slides[0]
    assert before.sha256 != after.sha256
    assert before.source != after.source
    assert before.stored_as != after.stored_as


def test_slides_are_kept_by_content_and_never_replaced(tmp_path: Path) -> None:
    path = slide(tmp_path / "in/001.svs", "of A")
    label = slide(tmp_path / "in/001.geojson", "labels")
    (a,) = sources(tmp_path, tmp_path / "in", use_labels=True).slides
    store = DirectoryStore(tmp_path / "store")
    digest = sha256_file(path)
    assert a.sha256 == digest
    assert a.labels_sha256 == sha256_file(label)
    assert a.source == f"sources/{digest[:32]}/001.svs"
    assert a.labels == f"annotations/{sha256_file(label)[:32]}/001.geojson"
    assert a.stored_as == f"001-{hashlib.sha256(f'{digest} None'.encode()).hexdigest()[:12]}"
    path.write_bytes(b"of B")
    label.write_bytes(b"LABELS")  # the same size
    (b,) = sources(tmp_path, tmp_path / "in", use_labels=True, mpp=0.5).slides
    assert b.source != a.source
    assert b.labels != a.labels
    assert b.stored_as != a.stored_as
    assert (store.get(a.source), store.get(b.source)) == (b"of A", b"of B")
    assert store.get(a.labels or "") == b"labels"
    kept = store.stat(b.source)
    sources(tmp_path, tmp_path / "in")
    assert store.stat(b.source) == kept  # not copied again
    store.put(b.source, b"of")
    sources(tmp_path, tmp_path / "in")
    assert store.get(b.source) == b"of B"  # its copy was cut off
    store.put(b.source, b"OF b")
    store.put(b.labels or "", b"labelS")
    sources(tmp_path, tmp_path / "in", use_labels=True)
    assert (store.get(b.source), store.get(b.labels or "")) == (b"of B", b"LABELS")
    (here,) = sources(tmp_path, tmp_path / "in", in_place=True).slides
    assert here.source == str(path)
    assert here.sha256 == b.sha256


def test_a_copy_in_a_store_on_a_server_is_made_again_when_asked(tmp_path: Path) -> None:
    class Remote(DirectoryStore):
        def fetches(self) -> bool:
            return True

    store: Store = Remote(tmp_path / "store")
    slide(tmp_path / "in/a.svs", "good")
    (made,) = slide_sources(store, find_slides([tmp_path / "in"]), keep_source=True).slides
    store.put(made.source, b"baad")  # of the same size; to compare more would fetch it
    slide_sources(store, find_slides([tmp_path / "in"]), keep_source=True)
    assert store.get(made.source) == b"baad"
    slide_sources(store, find_slides([tmp_path / "in"]), keep_source=True, fresh=True)
    assert store.get(made.source) == b"good"


def test_equal_contents_are_taken_once(tmp_path: Path) -> None:
    slide(tmp_path / "in/a.svs", "same")
    slide(tmp_path / "in/b/a.svs", "same")
    slide(tmp_path / "in/b/a.geojson", "labels")
    slide(tmp_path / "in/c.svs", "other")
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert len(made.slides) == 2
    assert made.slides[1].labels is not None or made.slides[0].labels is not None
    assert any("a.svs has the same content as b/a.svs" in note for note in made.notes)


def test_a_cohort_that_grows_keeps_its_names(tmp_path: Path) -> None:
    slide(tmp_path / "in/b/001.svs", "first")
    before = sources(tmp_path, tmp_path / "in", cohort="c").slides
    store = DirectoryStore(tmp_path / "store")
    record = CohortRecord(
        cohort="c", classes=None, patches=PatchGrid(), splits={"001": "train"},
        sha256={item.slide: item.sha256 or "" for item in before},
    )  # fmt: skip
    store.put_json(cohort_key("c"), record)
    slide(tmp_path / "in/a/001.svs", "second")
    after = {
        item.sha256: item.slide for item in sources(tmp_path, tmp_path / "in", cohort="c").slides
    }
    assert after[before[0].sha256] == "001"
    assert sorted(after.values()) == ["001", "a-001"]
    (tmp_path / "in/b/001.svs").rename(tmp_path / "in/b/002.svs")
    with pytest.raises(
        InputError, match=r"cohort 'c': '002' has the content of slide '001'.*--rep"
    ):
        sources(tmp_path, tmp_path / "in", cohort="c")


def test_long_and_odd_file_names_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate((b"x" * 251 + b".svs", b"caf\xe9.svs", "切 片.svs".encode())):
        (Path(os.fsdecode(bytes(folder) + b"/" + name))).write_bytes(bytes([number]))
    made = sources(tmp_path, folder)
    store = DirectoryStore(tmp_path / "store")
    assert sorted(store.get(item.source) for item in made.slides) == [b"\0", b"\1", b"\2"]
    assert not made.refused
    refused = sources(tmp_path, folder, in_place=True).refused
    assert ["not valid UTF-8" in item.reason for item in refused] == [True]


def test_patients_come_from_names_patterns_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("TCGA-AA-0001-01Z-DX1", "TCGA-AA-0001-01Z-DX2", "P7_1", "P7_2"):
        slide(folder / f"{name}.svs")
    slide(folder / "P9/scan.svs")
    of = {item.slide: (item.patient, item.site) for item in sources(tmp_path, folder).slides}
    assert of["TCGA-AA-0001-01Z-DX2"] == ("TCGA-AA-0001", "AA")
    assert of["P7_1"] == (None, None)
    made = sources(tmp_path, folder, patient=r"(P\d+)[_/]")
    assert {item.slide: item.patient for item in made.slides} == {
        "P7_1": "P7", "P7_2": "P7", "scan": "P9",
    }  # fmt: skip
    assert len(made.refused) == 2
    table = tmp_path / "patients.csv"
    table.write_text("slide;patient\nP7_1;x\nP7_2.svs;x\nscan;y\n")
    made = sources(tmp_path, folder, patient=str(table))
    assert {item.slide: item.patient for item in made.slides} == {
        "P7_1": "x", "P7_2": "x", "scan": "y",
    }  # fmt: skip
    with pytest.raises(InputError, match="fits no slide"):
        sources(tmp_path, folder, patient=r"case(\d+)")
    with pytest.raises(InputError, match="no regular expression"):
        sources(tmp_path, folder, patient=r"case(\d+")


def test_a_table_tells_slides_of_equal_names_apart(tmp_path: Path) -> None:
    for site in "ab":
        slide(tmp_path / f"in/{site}/001.svs")
    table = tmp_path / "p.csv"
    table.write_text("path,patient\na/001.svs,P\nb/001.svs,Q\n")
    made = sources(tmp_path, tmp_path / "in", patient=str(table))
    assert {item.slide: item.patient for item in made.slides} == {"a-001": "P", "b-001": "Q"}
    table.write_text("slide,patient\n001,P\n001,Q\n")
    with pytest.raises(InputError, match=r"no slide is left.*p\.csv has several rows of 001\.svs"):
        sources(tmp_path, tmp_path / "in", patient=str(table))


def test_equal_contents_of_two_patients_are_refused(tmp_path: Path) -> None:
    for name in ("P1_x", "P2_x"):
        slide(tmp_path / f"in/{name}.svs", "same")
    made = sources(tmp_path, tmp_path / "in", patient=r"(P\d)")
    assert [item.patient for item in made.slides] == ["P1"]
    assert "same content as P1_x.svs, but another patient" in made.refused[0].reason


def test_a_store_that_takes_nothing_is_one_clear_error(tmp_path: Path) -> None:
    slide(tmp_path / "in/a.svs")
    (tmp_path / "file").write_bytes(b"")
    found = find_slides([tmp_path / "in"])
    with pytest.raises(InputError, match="takes no files: it is no folder"):
        slide_sources(DirectoryStore(tmp_path / "file"), found, keep_source=True)

    class Full(DirectoryStore):
        def put_file(self, key: str, path: Path) -> str:
            raise OSError(28, "No space left on device")

    full: Store = Full(tmp_path / "full")
    with pytest.raises(InputError, match="takes no files: it is full"):
        slide_sources(full, found, keep_source=True)


def test_copies_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide(tmp_path / "in/a.svs", "12345678")
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 7)
    with pytest.raises(InputError, match=r"copies of 1 slides would take about 0.0 MB.*--in-place"):
        sources(tmp_path, tmp_path / "in")
    assert not (tmp_path / "store/sources").exists()
    sources(tmp_path, tmp_path / "in", in_place=True)
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 8)
    sources(tmp_path, tmp_path / "in")
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 0)
    sources(tmp_path, tmp_path / "in")  # it is there already


def test_a_cohort_of_one_bad_and_999_good_slides(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(999):
        (folder / f"{number:03}.png").write_bytes(b"%d" % number)
    (folder / "bad.png").symlink_to("nowhere")
    made = sources(tmp_path, folder, in_place=True)
    assert len({item.slide for item in made.slides}) == 999
    assert [Path(item.path).name for item in made.refused] == ["bad.png"]
