"""Finding the annotations of slides: by their names, in their folders, each for one slide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from heterotissue.sources import find_slides
from shared.errors import InputError
from shared.storage import sha256_file
from tests.source_files import slide, sources


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


def test_an_annotations_name_may_be_in_another_unicode_form(tmp_path: Path) -> None:
    for one, two in (("M\u00fcller", "Mu\u0308ller"), ("O\u0308dem", "\u00d6dem")):
        slide(tmp_path / f"in/{one}.svs")
        slide(tmp_path / f"in/{two}.geojson")
        slide(tmp_path / f"labels/{two}_mask.png")
    for labels in (None, tmp_path / "labels"):
        made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=labels)
        assert [bool(item.labels) for item in made.slides] == [True, True]


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
    assert "001.xml may be that of any of a/001.svs, b/001.svs: " in made.refused[0].reason
    slide(tmp_path / "in/c/002.svs.geojson")  # names one of the two
    beside = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert not beside.refused
    assert sum(item.labels is not None for item in beside.slides) == 1


def test_an_annotation_of_another_folders_slide_is_not_taken(tmp_path: Path) -> None:
    for place in ("A/2.svs", "B/1.svs", "C/deep/4.svs", "D/deep/4.svs", "E/3.svs"):
        slide(tmp_path / "in" / place)
    for place in ("A/1.png", "A/2.png", "C/4.png", "3.png"):
        slide(tmp_path / "labels" / place)
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    taken = {item.slide[0]: item.labels_sha256 for item in made.slides if item.labels}
    assert taken == {
        "2": sha256_file(tmp_path / "labels/A/2.png"),
        "4": sha256_file(tmp_path / "labels/C/4.png"),  # of the folder above C/deep
        "3": sha256_file(tmp_path / "labels/3.png"),  # of no folder
    }
    assert sum(item.slide[0] == "4" for item in made.slides if item.labels) == 1
    assert any("B/1.svs has no annotation" in note and "A/1.png" in note for note in made.notes)
    slide(tmp_path / "labels/E/5.png")  # so E has annotations of its own, and 3 has none there
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    assert "3" not in {item.slide for item in made.slides if item.labels}


def test_slides_in_one_folder_may_have_annotations_in_several(tmp_path: Path) -> None:
    for number in (1, 2):
        slide(tmp_path / f"in/{number}.svs")
        slide(tmp_path / f"labels/{number}/{number}.png")
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "labels")
    assert [item.labels_sha256 for item in made.slides] == [
        sha256_file(tmp_path / f"labels/{number}/{number}.png") for number in (1, 2)
    ]


def test_pictures_of_slides_in_other_formats_are_no_slides(tmp_path: Path) -> None:
    scans = {"a.svs", "B.tif", "c.ome.tiff"}
    pictures = {"a.jpg", "b.PNG", "a.svs.jpg", "c.jpg", "clam/masks/a.jpg", "clam/stitches/B.jpg",
                "thumbnails/c.jpeg"}  # fmt: skip
    others = {"d.jpg", "clam/masks/e.jpg", "P2/a.png"}  # of no slide, or of another folder's
    for name in scans | pictures | others:
        slide(tmp_path / "in" / name)
    slide(tmp_path / "in/a.geojson")
    found = find_slides([tmp_path / "in"])
    assert {str(entry.below) for entry in found.slides} == scans | others
    (note,) = found.notes
    assert "skipped 7 pictures that have the names of slides in other formats" in note
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert not made.refused
    assert sum(item.labels is not None for item in made.slides) == 1
    every = sorted(path for path in (tmp_path / "in").iterdir() if path.is_file())
    given = {entry.path.name for entry in find_slides(every).slides}  # as by a shell's *
    assert given == {*scans, "d.jpg"}
    assert [e.path.name for e in find_slides([tmp_path / "in/a.jpg"]).slides] == ["a.jpg"]


@pytest.mark.parametrize("folder", ["masks", "drawn"])
def test_masks_of_slides_in_the_searched_folder_are_no_slides(tmp_path: Path, folder: str) -> None:
    slide(tmp_path / "in/a.svs")
    slide(tmp_path / "in/b.png")
    for name in ("a.png", "b.tif"):
        slide(tmp_path / "in" / folder / name)
    made = sources(tmp_path, tmp_path / "in", use_labels=True, labels=tmp_path / "in" / folder)
    assert {item.slide: Path(item.labels or "").name for item in made.slides} == {
        "a": "a.png", "b": "b.tif",
    }  # fmt: skip
    assert not made.refused


def features(*properties: dict[str, object]) -> str:
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    items = [{"type": "Feature", "geometry": geometry, "properties": item} for item in properties]
    return json.dumps({"type": "FeatureCollection", "features": items})


FOREIGN = {
    "a.xml": "<DataObject ObjectType='DPUfsImport'/>",
    "a.geojson": features({"tissue_id": 0}),
    "a.json": json.dumps({"mag": 40, "nuc": {"1": {"centroid": [1, 1]}}}),
    "a.svs.json": json.dumps([{"file_name": "a.svs", "file_id": "x"}]),
}


@pytest.mark.parametrize("name", ["a.xml", "a.geojson"])
def test_a_file_that_holds_no_annotation_does_not_hide_one(tmp_path: Path, name: str) -> None:
    slide(tmp_path / "in/a.svs")
    slide(tmp_path / "in" / name, FOREIGN[name])
    alone = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert Path(alone.slides[0].labels or "").name == name  # ingest says what is wrong with it
    mask = slide(tmp_path / "in/a_mask.png")
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert made.slides[0].labels_sha256 == sha256_file(mask)
    said = " ".join(made.notes)
    assert f"a.svs: a_mask.png, not {name}, which " in said
    assert "several annotations" not in said
    slide(tmp_path / "in" / name, features({"classification": {"name": "tumor"}}))
    if name == "a.geojson":
        real = sources(tmp_path, tmp_path / "in", use_labels=True)
        assert Path(real.slides[0].labels or "").name == name


@pytest.mark.parametrize("name", ["a.json", "a.svs.json"])
def test_json_of_other_tools_leaves_a_slide_without_labels(tmp_path: Path, name: str) -> None:
    slide(tmp_path / "in/a.svs")
    slide(tmp_path / "in" / name, FOREIGN[name])
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert made.slides[0].labels is None
    assert f"a.svs: none, not {name}, which holds no GeoJSON features" in " ".join(made.notes)
    for content in (features(), features({}), '{"features": [', "[]"):  # empty, or cut off
        slide(tmp_path / "in" / name, content)
        kept = sources(tmp_path, tmp_path / "in", use_labels=True)
        assert Path(kept.slides[0].labels or "").name == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xml", "<ASAP_Annotations><Annotations/><AnnotationGroups/></ASAP_Annotations>"),
        ("a.xml", '<Annotations><Annotation Id="1"><Regions/></Annotation></Annotations>'),
        ("a.annotations", "<Annotations><Annotation><Regions/></Annotation></Annotations>"),
        ("a.ndpa", "<annotations/>"),
    ],
)
def test_xml_without_an_outline_makes_way_for_a_mask(tmp_path: Path, name: str, text: str) -> None:
    slide(tmp_path / "in/a.svs")
    slide(tmp_path / "in" / name, text)
    alone = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert (alone.slides[0].labels or "").endswith(name)  # a slide on which nothing was drawn
    slide(tmp_path / "in/a_mask.png")
    made = sources(tmp_path, tmp_path / "in", use_labels=True)
    assert (made.slides[0].labels or "").endswith("/a_mask.png")
    assert f"a.svs: a_mask.png, not {name}, which has no outline" in " ".join(made.notes)
