"""Cohorts through the command line: doubles, DICOM series, patients, tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.imaging.region_sets import RegionIndex, load_region_set
from tests.formats.cohort_files import Outcome, tissue, write_dicom, write_mask, write_slide

REGIONS = ("--region-size", "64", "--region-mpp", "2")
SMALL = ("--mpp", "2", *REGIONS)


def test_one_bad_slide_costs_itself_alone(htd: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(3):
        write_slide(folder / f"{number}/切片 {number}.png", number)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "x.svs").mkdir()
    write_slide(folder / "._a.png", 9)
    shutil.copy(folder / "0/切片 0.png", folder / "copy.png")
    done = htd("ingest", folder, *SMALL)
    assert done.code == 3
    assert len(done.cohort.splits) == 3
    for words in ("gone.png: is a link to a missing file", "x.svs: is a folder", "._a.png",
                  "has the same content"):  # fmt: skip
        assert words in done.text
    (folder / "gone.png").unlink()
    (folder / "x.svs").rmdir()
    again = htd("ingest", folder, *SMALL)
    assert again.code == 0
    assert again.cohort == done.cohort
    alone = htd("ingest", tmp_path / "nothing.svs", *SMALL)
    assert alone.code == 2
    assert "nothing.svs is not there" in alone.text


def test_a_dicom_series_is_one_slide(htd: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(3):
        image = tissue(number, 512)
        series = f"1.2.3.{number + 1}"
        write_dicom(folder / f"s{number}_l0.dcm", image, series, patient=f"P{number // 2}")
        write_dicom(folder / f"s{number}_l1.dcm", image[::2, ::2], series, f"P{number // 2}", mpp=4)
    shutil.copy(folder / "s0_l0.dcm", folder / "again.dcm")
    write_dicom(folder / "sub/IM0001", tissue(7, 256), "1.2.3.8", "P8")  # without a suffix
    write_dicom(folder / "sub/part1.dcm", tissue(8, 256), "1.2.3.9", part_of="1.2.9")
    write_dicom(folder / "a_wide.dcm", tissue(9, 1024), "1.2.3.2", "P0", mpp=29, kind="OVERVIEW")
    write_dicom(folder / "alone.dcm", tissue(10, 256), "1.2.3.7", mpp=29, kind="LABEL")
    (folder / "DICOMDIR.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)
    done = htd("ingest", folder, *REGIONS)
    assert done.code == 3, done.text
    assert set(done.cohort.splits) == {"again", "s1_l0", "s2_l0", "IM0001"}
    assert done.cohort.patients == {"again": "P0", "s1_l0": "P0", "s2_l0": "P1", "IM0001": "P8"}
    assert done.cohort.splits["again"] == done.cohort.splits["s1_l0"]
    assert "part1.dcm: stores an image in several parts" in done.text
    kept = [key.rpartition("/")[2] for key in done.store.list("sources/")]
    assert (
        "skipped 1 labels or overviews in DICOM, of series without a level: alone.dcm" in done.text
    )
    assert sorted(kept) == ["IM0001", "again.dcm", "s0_l1.dcm", *(
        f"s{n}_l{level}.dcm" for n in (1, 2) for level in (0, 1)
    )]  # fmt: skip


def test_another_resolution_needs_replace_and_a_far_one_is_a_caution(
    htd: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_dicom(folder / "s.dcm", tissue(0), "1.2.3.1", mpp=1.9)
    write_dicom(folder / "far.dcm", tissue(1), "1.2.3.2", mpp=29)
    done = htd("ingest", folder, *SMALL)
    assert done.code == 0, done.text
    (caution,) = done.cohort.cautions
    assert "(far: 2 instead of 29 µm/px)" in caution
    assert f"caution: {caution}" in done.text
    before = done.cohort
    other = htd("ingest", folder, "--mpp", "1", *REGIONS)
    assert other.code == 2
    assert "--replace" in other.text
    assert other.cohort == before
    assert htd("ingest", folder, "--mpp", "1", *REGIONS, "--replace").cohort.mpp["s"] == 1


def test_files_that_changed_places_are_noticed(htd: Any, tmp_path: Path) -> None:
    one, two = (write_slide(tmp_path / f"in/P{n}.png", n) for n in (1, 2))
    before = htd("ingest", tmp_path / "in", *SMALL).cohort
    one.rename(tmp_path / "other.png")
    two.rename(one)
    (tmp_path / "other.png").rename(two)
    swapped = htd("ingest", tmp_path / "in", *SMALL)
    assert swapped.code == 2
    assert "two files changed places" in swapped.text
    assert swapped.cohort == before
    now = htd("ingest", tmp_path / "in", *SMALL, "--replace").cohort
    assert now.sha256 == {"P1": before.sha256["P2"], "P2": before.sha256["P1"]}


def test_a_slide_that_is_skipped_once_keeps_its_split_and_its_name(
    htd: Any, tmp_path: Path
) -> None:
    folder, classes = tmp_path / "in", ("--classes", "tumor")
    for number in range(8):
        image = write_slide(folder / f"{number}" / "x.png", number)  # equal names: folders in front
        Image.fromarray(np.ones((256, 256), np.uint8)).save(image.with_name("x_mask.png"))
    before = htd("ingest", folder, *SMALL, *classes)
    assert before.code == 0, before.text
    test = next(name for name, split in before.cohort.splits.items() if split == "test")
    mask = folder / test.removesuffix("-x") / "x_mask.png"
    whole = mask.read_bytes()
    Image.fromarray(np.ones((7, 90), np.uint8)).save(mask)
    for number in range(8, 12):
        image = write_slide(folder / f"{number}" / "x.png", number)
        Image.fromarray(np.ones((256, 256), np.uint8)).save(image.with_name("x_mask.png"))
    between = htd("ingest", folder, *SMALL, *classes)
    assert between.code == 3
    assert test not in between.cohort.splits
    assert between.cohort.skipped[test].split == "test"
    mask.write_bytes(whole)
    after = htd("ingest", folder, *SMALL, *classes)
    assert after.code == 0, after.text
    assert before.cohort.splits.items() <= after.cohort.splits.items()
    assert between.cohort.splits.items() <= after.cohort.splits.items()
    assert not after.cohort.skipped


def test_slides_of_a_patient_stay_together(htd: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = [f"TCGA-AA-{p:04}-01Z-00-DX{n}" for p in range(3) for n in (1, 2)]
    for number, name in enumerate(names):
        write_slide(folder / f"{name}.png", number)
        write_mask(folder / f"{name}_mask.png")
    done = htd("ingest", folder, *SMALL, "--classes", "pink,violet")
    assert done.code == 0
    splits = done.cohort.splits
    assert all(splits[one] == splits[two] for one, two in zip(names[::2], names[1::2], strict=True))
    assert sorted(splits.values()).count("test") == 2
    rows = {line.split()[0]: line.split()[1:] for line in done.lines if line.strip()}
    assert rows["patients"] == ["2", "0", "1"]
    assert rows["slides"] == ["4", "0", "2"]
    regions = load_region_set(done.store, "c")
    assert {part.patient for part in regions.slides} == {f"TCGA-AA-{p:04}" for p in range(3)}
    every = list(RegionIndex(done.store, regions, "train", "test"))
    for part in regions.slides:
        labels = [region.labels for region in every if region.slide == part.slide]
        counts = [sum(bool((one == index).any()) for one in labels) for index in range(3)]
        assert list(part.class_regions) == counts
    for number in range(6, 12):
        write_slide(folder / f"TCGA-BB-{number:04}-01Z-00-DX1.png", number)
    grown = htd("ingest", folder, *SMALL, "--classes", "pink,violet").cohort.splits
    assert {name: grown[name] for name in splits} == splits


def test_slides_that_seem_to_be_of_one_patient_are_pointed_out(htd: Any, tmp_path: Path) -> None:
    for number in range(8):
        write_slide(tmp_path / f"in/P{number // 4}_{number}.png", number)
    done = htd("ingest", tmp_path / "in", *SMALL)
    assert len(done.cohort.cautions) == 1
    assert "some slides of one patient may be in more than one split" in done.text
    known = htd("ingest", tmp_path / "in", *SMALL, "--patient", r"(P\d+)_")
    assert known.cohort.cautions == ()
    assert set(known.cohort.patients.values()) == {"P0", "P1"}


TABLES = {
    "a lab's": ("Path;Slide;Patient;Centre;MPP;Annotation;Split;Stain\r\n"
                "s/0.png;one;p;x;2,0;m/0.png;Training;HE\r\n"
                "s/1.png;two;q;y;1,5;;test;HE\r\n"),
    "TRIDENT's": "wsi,mpp\n0.png,2\n1.png,1.5\n",
    "CLAM's": "case_id,slide_id,label\np,0,tumor\nq,1,normal\n",
    "Excel's": "sep=,\nfile name,patient id\ns/0.png,p\ns/1.png,q\n",
    "tabs": "Image\tCase ID\n0.png\tp\n0.png\tp\n1.png\tq\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_describes_the_cohort(htd: Any, tmp_path: Path, kind: str) -> None:
    for number in range(3):
        write_slide(tmp_path / f"s/{number}.png", number)
    write_mask(tmp_path / "m/0.png")
    table = tmp_path / "cohort.csv"
    table.write_text("\ufeff" + TABLES[kind], encoding="utf-8", newline="")
    words = (tmp_path / "s", "--table", table) if kind != "a lab's" else (table,)
    done = htd("ingest", *words, *SMALL, "--classes", "pink,violet")
    assert done.code == 0, done.text
    record = done.cohort
    if kind == "a lab's":
        assert record.splits == {"one": "train", "two": "test"}
        assert record.sites == {"one": "x", "two": "y"}
        assert "columns not read: Stain" in done.text
        assert [part.slide for part in load_region_set(done.store, "c").slides] == ["one"]
        assert request_of(done, "two")["mpp"] == 1.5
    else:
        assert sorted(record.splits) == ["0", "1"]
        assert "does not list 1 slides: left out 2.png" in done.text
    if kind == "TRIDENT's":
        assert [request_of(done, name)["mpp"] for name in ("0", "1")] == [2, 1.5]
    else:
        assert list(record.patients.values()) == ["p", "q"]


def request_of(done: Outcome, slide: str) -> dict[str, Any]:
    """Return a slide's part of the one request in the store."""
    (key,) = (key for key in done.store.list("jobs/") if key.endswith("/request.json"))
    slides = done.store.get_json(key)["request"]["slides"]
    return dict(next(item for item in slides if item["slide"] == slide))


def test_faulty_rows_are_refused_by_their_numbers(htd: Any, tmp_path: Path) -> None:
    for number in range(5):
        write_slide(tmp_path / f"{number}.png", number)
    table = tmp_path / "t.csv"
    table.write_text(
        "path,mpp,split,labels\n0.png,,,\ngone.png,,,\n1.png,fine,,\n2.png,,maybe,\n3.png,,,no.xml\n"
        "0.png,1.9,,\n1.png,1,9,,no.xml\n4.png,,train,\n"
    )
    done = htd("ingest", table, *SMALL)
    assert done.code == 3
    assert list(done.cohort.splits) == ["4"]
    for words in ("row 3: gone.png is not there", "row 4: mpp 'fine'", "row 5: split 'maybe'",
                  "row 6: its annotation no.xml is not there", "row 7: lists 0.png again",
                  "row 8: has more values than there are headings"):  # fmt: skip
        assert words in done.text
    for text, words in (("a,b\n1,2\n", "no column of slides"), ("", "is empty"),
                        ("path\n", "lists no slide")):  # fmt: skip
        table.write_text(text)
        wrong = htd("ingest", table, *SMALL)
        assert wrong.code == 2
        assert words in wrong.text
    table.write_bytes(b"PK\x03\x04\0\0")
    assert "save the table as CSV" in htd("ingest", table, *SMALL).text


def test_a_qupath_project_lists_its_images(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "moved/slides/a b.png", 1)
    write_slide(tmp_path / "moved/slides/c.png", 2)
    (tmp_path / "moved/qupath").mkdir()
    project = {
        "version": "0.6.0", "uri": "file:/D:/work/qupath/project.qpproj",
        "images": [
            {"serverBuilder": {"builderType": "uri", "uri": "file:/D:/work/slides/a%20b.png",
                               "metadata": {"pixelCalibration": {
                                   "pixelWidth": {"value": 2, "unit": "µm"},
                                   "pixelHeight": {"value": 2, "unit": "µm"}}}}},
            {"serverBuilder": {"builderType": "rotated", "rotation": "ROTATE_NONE", "builder": {
                "builderType": "pyramidize", "builder": {
                    "builderType": "uri", "uri": "file:/D:/work/slides/c.png"}}}},
        ],
    }  # fmt: skip
    file = tmp_path / "moved/qupath/project.qpproj"
    file.write_text(json.dumps(project), encoding="utf-8")
    done = htd("ingest", file, *SMALL)
    assert done.code == 0, done.text
    assert len(done.cohort.splits) == 2
    file.write_text("[]")
    assert "no project of QuPath" in htd("ingest", file, *SMALL).text


def test_images_that_qupath_moves_are_refused_alone(htd: Any, tmp_path: Path) -> None:
    def file(name: str, **more: Any) -> dict[str, Any]:
        uri = write_slide(tmp_path / f"{name}.png", ord(name)).as_uri()
        return {"builderType": "uri", "uri": uri, **more}

    def made(kind: str, inner: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"builderType": kind, "builder": inner, **more}

    region = {"x": 50, "y": 50, "width": 40, "height": 30, "z": 0, "t": 0}
    builders = [
        made("rotated", file("a"), rotation="ROTATE_180"),
        made("cropped", file("b"), region=region),
        made("color_deconvolved", made("affine", file("c"), transform={"m00": 1.0})),
        {"builderType": "sparse", "regions": [{"region": region, "serverBuilder": file("d")}]},
        made("made later", file("e")),
        file("f", args=["--rotate", "ROTATE_90"]),
        made("color_deconvolved", file("g", args=["--series", "0", "--no-crop"])),
        file("h", args=["--series", "2"]),
    ]
    project = tmp_path / "project.qpproj"
    project.write_text(json.dumps({"images": [{"serverBuilder": one} for one in builders]}))
    done = htd("ingest", project, *SMALL)
    assert done.code == 3, done.text
    assert list(done.cohort.splits) == ["g"]
    for words in ("row 1: shows a.png otherwise than the file holds it (rotated ROTATE_180)",
                  "row 2: shows b.png otherwise than the file holds it (cropped)",
                  "row 3: shows c.png otherwise than the file holds it (affine)",
                  "row 4: shows d.png otherwise than the file holds it (sparse)",
                  "row 5: shows e.png otherwise than the file holds it (made later)",
                  "row 6: shows f.png otherwise than the file holds it (--rotate)",
                  "row 8: shows h.png otherwise than the file holds it (--series 2)"):  # fmt: skip
        assert words in done.text
    assert "add the file to the project as it is, and draw there" in done.text


def test_a_forced_leak_is_a_caution(htd: Any, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,patient,split\na.png,p,train\nb.png,p,test\n")
    for number, name in enumerate("ab"):
        write_slide(tmp_path / f"{name}.png", number)
        write_mask(tmp_path / f"{name}_mask.png")
    refused = htd("ingest", table, *SMALL, "--classes", "pink,violet")
    assert refused.code == 2
    assert "divide patient 'p'" in refused.text
    forced = htd("ingest", table, *SMALL, "--classes", "pink,violet", "--allow-leakage")
    assert forced.code == 0
    assert "caution: Slides of 1 patients (p: a, b)" in forced.text
    assert load_region_set(forced.store, "c").cautions == forced.cohort.cautions
