"""Finding slides and their annotations on disk, naming them, and keeping them by content."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.keeping import Sources
from heterotissue.sources.names import Named, RenamedError, distinct_names, plain_name
from heterotissue.sources.table_values import mpp_of
from heterotissue.sources.tables import Table, find_by_table
from shared.contracts.base import Name
from shared.contracts.ingest import CohortRecord, PatchGrid, cohort_key
from shared.errors import InputError
from shared.storage import DirectoryStore, Store, sha256_file


def slide(path: Path, content: str = "") -> Path:
    """Write a file that stands for a slide: only its name and content count here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or str(path)).encode())
    return path


def names_in(paths: list[Path], **options: Any) -> list[str]:
    return [entry.path.name for entry in find_slides(paths, **options).slides]


def sources(tmp_path: Path, *paths: Path, **options: Any) -> Sources:
    settings: dict[str, Any] = {"use_labels": False, "keep_source": True} | options
    return slide_sources(DirectoryStore(tmp_path / "store"), find_slides(list(paths)), **settings)


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
        "a_mask.png", "a-labels.tif", "a.svs.geojson", "a_thumbnail.jpg", "g_mask.tif", "n.txt",
        "a.vsi",
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


def test_masks_and_pictures_of_the_glass_beside_slides_are_no_slides(tmp_path: Path) -> None:
    pictures = {"a.png", "b.svs", "c.ome.tif"}
    masks = {"a.labels.png", "a_seg.png", "a_gt.png", "a_label.png", "b.gt.tif", "c.labelmap.png"}
    alone = {"d_gt.png", "e-label.tif"}  # which may be slides: nothing is beside them
    for name in pictures | masks | alone | {"b_label.png", "b-macro.jpg"}:
        slide(tmp_path / "in" / name)
    found = find_slides([tmp_path / "in"])
    assert {entry.path.name for entry in found.slides} == pictures | alone
    assert found.notes == ["skipped 2 small pictures of slides: b-macro.jpg, b_label.png"]
    for name in masks - {"a_label.png", "b.gt.tif", "c.labelmap.png"}:
        (tmp_path / "in" / name).unlink()
    labels = {item.slide: item.labels for item in sources(tmp_path, tmp_path / "in",
                                                          use_labels=True).slides}  # fmt: skip
    named = {name: Path(file).name for name, file in labels.items() if file}
    assert named == {"a": "a_label.png", "b": "b.gt.tif", "c.ome": "c.labelmap.png"}


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
    (here,) = sources(tmp_path, tmp_path / "in", in_place=True).slides
    assert here.source == str(path)
    assert here.sha256 == b.sha256


def test_equal_contents_are_taken_once(tmp_path: Path) -> None:
    slide(tmp_path / "in/a.svs", "same")
    slide(tmp_path / "in/b/a.svs", "same")
    slide(tmp_path / "in/b/a.geojson", "labels")
    slide(tmp_path / "in/c.svs", "other")
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert len(made.slides) == 2
    assert made.slides[1].labels is not None or made.slides[0].labels is not None
    assert any("a.svs has the same content as b/a.svs" in note for note in made.notes)


@pytest.mark.parametrize(
    "text",
    ["a", "TCGA-CR-7395-01A-01-TS1.2f6d5f10-8a1f-4a30-8a3c-0a2e0bd9bcc0", "切片", "Ünïcode слайд",
     "a 1", "-x-", "…", "x" * 251, "plan", "Finish", "a\\b", "caf\udce9"],
)  # fmt: skip
def test_every_name_becomes_a_name_of_the_store(text: str) -> None:
    name = plain_name(text)
    assert TypeAdapter(Name).validate_python(name) == name
    assert len(name) <= 80
    assert name == plain_name(text)
    assert name.lower() not in {"plan", "finish"}


def test_names_tell_files_apart() -> None:
    assert plain_name("case_7-a.1") == "case_7-a.1"
    assert plain_name("müde Probe (2)").startswith("mude-Probe-2-")
    assert len({plain_name(text) for text in ("切片", "幻灯片", "a 1", "a-1", "a_1")}) == 5
    one, other = plain_name("u\u0308"), plain_name("ü")  # the same letter, written in two ways
    assert one == other


def test_equal_names_get_their_folders_and_known_slides_keep_theirs() -> None:
    a, b = Named("001", "siteA", "11" * 32), Named("001", "siteB", "22" * 32)
    assert distinct_names([a, b], {}) == ["siteA-001", "siteB-001"]
    assert distinct_names([a, b], {a.sha256: "001"}) == ["001", "siteB-001"]
    assert distinct_names([a, a._replace(sha256="33" * 32)], {}) == ["001-111111", "001-333333"]
    mixed = distinct_names([Named("A", "x", "11" * 32), Named("a", "y", "22" * 32)], {})
    assert len({name.lower() for name in mixed}) == 2


def test_a_known_name_is_kept_only_by_files_that_it_was_made_of() -> None:
    p1, p2 = Named("P1", "in", "11" * 32), Named("P2", "in", "22" * 32)
    known = {p1.sha256: "P1", p2.sha256: "P2"}
    assert distinct_names([p1, p2], known) == ["P1", "P2"]
    with pytest.raises(RenamedError, match="'P1' has the content of slide 'P2'"):
        distinct_names([p2._replace(wish="P1"), p1._replace(wish="P2")], known)
    with pytest.raises(RenamedError, match="'Case7' has the content of slide 'P1'"):
        distinct_names([p1._replace(wish="Case7"), p2], known)
    assert distinct_names([p1._replace(folder="moved"), p2], known) == ["P1", "P2"]
    a, b = Named("001", "a", "11" * 32), Named("001", "b", "22" * 32)
    known = {a.sha256: "a-001", b.sha256: "b-001"}
    with pytest.raises(RenamedError):  # the two folders changed places
        distinct_names([a._replace(folder="b"), b._replace(folder="a")], known)


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


@pytest.mark.parametrize(
    "name",
    ["a.geojson", "a.GEOJSON", "a.geojson.gz", "a.svs.geojson", "A.SVS.GeoJSON", "a.xml",
     "a.svs.xml", "a.json", "a_mask.png", "a-labels.tif", "a.mask.png", "a_mask.jpg",
     "a.svs_mask.tiff", "a_labels.npy", "a.labels.png", "a-seg.tif", "a_GT.png"],
)  # fmt: skip
def test_annotations_are_found_by_the_names_that_tools_give_them(tmp_path: Path, name: str) -> None:
    slide(tmp_path / "in/a.svs")
    slide(tmp_path / "in/b.svs")
    label = slide(tmp_path / "in" / name)
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert [item.slide for item in made.slides] == ["a", "b"]
    assert made.slides[0].labels_sha256 == sha256_file(label)
    assert made.slides[1].labels is None
    assert "no annotation of 1 of 2 slides was found: b.svs" in made.notes


def test_what_is_not_clear_of_annotations_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    slide(folder / "a.svs")
    slide(folder / "a.xml")
    slide(folder / "a.geojson")
    made = sources(tmp_path, folder, use_labels=True)
    assert (made.slides[0].labels or "").endswith("/a.geojson")
    assert "1 slides have several annotations; taken: a.svs: a.geojson" in made.notes
    unread = sources(tmp_path, folder)
    assert unread.slides[0].labels is None
    assert "annotations of 1 slides are not read (a.geojson)" in unread.notes[0]
    (tmp_path / "wrong").mkdir()
    slide(tmp_path / "wrong/b.xml")
    with pytest.raises(InputError, match="holds no annotation of any slide"):
        sources(tmp_path, folder, use_labels=True, labels=tmp_path / "wrong")
    with pytest.raises(InputError, match="is not a folder"):
        sources(tmp_path, folder, use_labels=True, labels=tmp_path / "missing")


def test_a_folder_of_annotations_may_mirror_the_slides(tmp_path: Path) -> None:
    for site in ("a", "b"):
        slide(tmp_path / "in" / site / "001.svs")
        slide(tmp_path / "labels" / site / "001.png")
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    assert [item.labels_sha256 for item in made.slides] == [
        sha256_file(tmp_path / "labels" / site / "001.png") for site in ("a", "b")
    ]
    shutil.move(tmp_path / "in/a", tmp_path / "in/c")
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    assert [item.slide for item in made.slides] == ["001"]
    assert "has several annotations of one name" in made.refused[0].reason


def test_an_annotation_is_of_one_slide_only(tmp_path: Path) -> None:
    for place in ("a/001.svs", "b/001.svs", "c/002.svs", "c/002.tif", "c/003.svs"):
        slide(tmp_path / "in" / place)
    for name in ("001.xml", "003.xml"):
        slide(tmp_path / "labels" / name)
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    assert {item.slide: item.labels is not None for item in made.slides if item.labels} == {
        "003": True
    }
    assert sorted(Path(item.path).parts[-2:] for item in made.refused) == [
        ("a", "001.svs"), ("b", "001.svs"),
    ]  # fmt: skip
    assert "001.xml may be that of b/001.svs too" in made.refused[0].reason
    slide(tmp_path / "in/c/002.svs.geojson")  # names one of the two
    beside = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert not beside.refused
    assert sum(item.labels is not None for item in beside.slides) == 1


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
        def put_file(self, key: str, path: Path) -> None:
            raise OSError(28, "No space left on device")

    full: Store = Full(tmp_path / "full")
    with pytest.raises(InputError, match="takes no files: it is full"):
        slide_sources(full, found, keep_source=True)


def test_copies_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide(tmp_path / "in/a.svs", "12345678")
    monkeypatch.setattr(DirectoryStore, "free", lambda self: 7)
    with pytest.raises(InputError, match=r"copies of 1 slides need about 0.0 MB.*--in-place"):
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
