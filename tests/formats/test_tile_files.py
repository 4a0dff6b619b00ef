"""Every file of a folder of tiles that looks like a tile is taken, or named with the reason."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from heterotissue.sources.unread import why_not_taken
from shared.imaging.region_sets import RegionIndex, load_region_set
from tests.formats.cohort_files import tissue, write_mask, write_slide

COMMON = ("--classes", "pink,violet", "--mpp", "0.5")
BAD = os.fsdecode(b"bad\xff.png")


def save(path: Path, seed: int, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tissue(seed, 96)).save(path, kind)


@pytest.mark.parametrize(
    ("place", "apart"),
    [("{}_mask.png", False), ("../masks/{}.png", False), ("../masks/{}.png", True)],
)
def test_pictures_that_are_not_read_are_named(
    place: str, apart: bool, htd: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "in/images"
    files = {"a.png": "PNG", "b.jfif": "JPEG", "c.JPE": "JPEG", "d.gif": "GIF", "e.ppm": "PPM",
             "f.tga": "TGA", "g": "PNG", "h.jpg2": "JPEG", "a.gif": "GIF"}  # fmt: skip
    for number, (name, kind) in enumerate(files.items()):
        save(folder / name, number, kind)
    for name in ("i.raw", "i.txt", "a.json", "a.geojson", "j.csv", "a.h5"):
        folder.joinpath(name).write_bytes(b"\0\1" if name in {"i.raw", "a.h5"} else b"P5,text")
    for name in "abcdefghi":
        write_mask(folder / place.format(name), 96)
    masks = ("--masks", tmp_path / "in/masks") if apart else ()
    done = htd("tiles", folder if apart else tmp_path / "in", *COMMON, *masks)
    assert done.code == 3, done.text
    assert {part.slide for part in load_region_set(done.store, "c").slides} == {"a", "b", "c"}
    for said in ("d.gif: is a picture in a format that is not read, GIF: save it as PNG",
                 "e.ppm: is a picture in a format that is not read, PNM",
                 "f.tga: is in a format that is not read, TGA: convert it to PNG",
                 "g: is a picture (PNG), but its name does not say so: let it end in .png",
                 "h.jpg2: is a picture (JPEG), but its name does not say so: let it end in .jpg",
                 f"i.raw: has a mask, {Path(place.format('i')).name}, but is no picture",
                 f"beside tiles of their name: {'' if apart else 'images/'}a.gif"):  # fmt: skip
        assert said in done.text
    for name in ("i.txt", "a.json", "a.geojson", "j.csv", "a.h5", "without a tile", "has no mask"):
        assert name not in done.text


def test_pictures_among_slides_that_are_not_read_are_named(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "in/a.png", 0)
    for number, (name, kind) in enumerate({"b.jfif": "JPEG", "c.gif": "GIF", "d": "PNG"}.items()):
        path = tmp_path / "in" / name
        Image.fromarray(tissue(number + 1)).save(path, kind)
    shutil.copy(tmp_path / "in/c.gif", tmp_path / "in/a.gif")
    (tmp_path / "in/notes").write_text("no picture")
    done = htd("ingest", tmp_path / "in", "--mpp", "2", "--region-mpp", "2")
    assert done.code == 3, done.text
    assert set(done.cohort.splits) == {"a", "b"}
    assert "c.gif: is a picture in a format that is not read, GIF" in done.text
    assert "d: is a picture (PNG), but its name does not say so: let it end in .png" in done.text
    assert "beside slides of their name or in folders of masks and overviews: a.gif" in done.text
    assert "notes" not in done.text.replace("note:", "")


@pytest.mark.parametrize(
    "head", [b"BMI,age\n1,2", b"P1,P2", b"RIFF", b"\x89PNG", b"", b"II, MM", b"\0" * 400]
)
def test_other_files_are_no_pictures(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert why_not_taken(tmp_path / "a") is None
    assert why_not_taken(tmp_path) is None


def test_names_that_are_not_utf8_cost_their_tiles_alone(htd: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_slide(folder / "a.png", 0, 96)
    write_mask(folder / "a_mask.png", 96)
    shutil.copy(write_slide(folder / "b.png", 1, 96), folder / BAD)
    (folder / "b.png").unlink()
    shutil.copy(folder / "a_mask.png", folder / os.fsdecode(b"bad\xff_mask.png"))
    for options in ((), ("--patient", r"(.*)\.png")):
        done = htd("tiles", folder, *COMMON, *options, "--replace")
        assert done.code == 3, done.text
        assert r"bad\xff.png: has a path that is not valid UTF-8" in done.text
    table = tmp_path / os.fsdecode(b"t\xff.csv")
    table.write_text("slide,patient\na,P1\n")
    done = htd("tiles", folder, *COMMON, "--patient", str(table), "--replace")
    assert done.code == 3, done.text
    assert [part.patient for part in load_region_set(done.store, "c").slides] == ["P1"]


def test_names_of_slides_that_are_not_utf8_are_taken(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "in/a.png", 0)
    shutil.copy(write_slide(tmp_path / "b.png", 1), tmp_path / "in" / BAD)
    for options in ((), ("--patient", r"(.*)\.png")):
        done = htd(
            "ingest", tmp_path / "in", "--mpp", "2", "--region-mpp", "2", "--replace", *options
        )
        assert done.code == 0, done.text
        assert len(done.cohort.splits) == 2


def test_a_folder_without_tiles_says_what_was_looked_for(htd: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = htd("tiles", tmp_path / "in", *COMMON)
    assert done.code == 2
    assert "looked for .bmp, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, .webp there" in done.text
    assert done.text.endswith("Give the folder of the tiles")
    write_mask(tmp_path / "in/a_mask.png", 96)
    assert "masks by their names: a_mask.png" in htd("tiles", tmp_path / "in", *COMMON).text


def test_links_to_nothing_are_called_so(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "in/a.png", 0, 96)
    write_mask(tmp_path / "in/a_mask.png", 96)
    (tmp_path / "in/b.png").symlink_to(tmp_path / "gone.png")
    done = htd("tiles", tmp_path / "in", *COMMON)
    assert done.code == 3
    assert "b.png: is a link to a missing file" in done.text


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_tiles_smaller_than_the_smallest_region_are_refused(
    options: tuple[str, ...], htd: Any, tmp_path: Path
) -> None:
    write_slide(tmp_path / "in/a.png", 0, 42)
    write_mask(tmp_path / "in/a_mask.png", 42)
    words = ("tiles", tmp_path / "in", *COMMON, *options, "--region-mpp")
    done = htd(*words, "1")
    assert done.code == 2
    assert (
        "a.png: has a side of 21 px at 1 µm/px, smaller than a region of 32 px: take --region-mpp "
        "0.656 or less"
    ) in done.text
    assert htd(*words, "0.656").code == 0


def test_a_number_that_names_a_folder_and_a_value_is_refused(htd: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        write_slide(tmp_path / f"in/{number}/x.png", number, 96)
        write_mask(tmp_path / f"in/{number}/x_mask.png", 96)
    words = ("tiles", tmp_path / "in", *COMMON)
    done = htd(*words, "--rename", "1=violet", "--rename", "2=pink")
    assert done.code == 2
    assert "--rename '1=violet' may mean a value of the masks, or the folder '1' here" in done.text
    assert "give --set 'label_names.1=violet' in place of it" in done.text
    done = htd(*words, "--set", "label_names.1=violet", "--set", "label_names.2=pink")
    assert done.code == 0, done.text
    regions = RegionIndex(done.store, load_region_set(done.store, "c"), "train", "val", "test")
    for region in regions:  # the large outer part is of value 1
        assert (region.labels == 2).sum() > (region.labels == 1).sum() > 0


def test_a_cohort_of_tiles_keeps_its_groups_unless_it_is_replaced(htd: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("p1-a", "p1-b", "p2-a")):
        write_slide(tmp_path / f"in/{name}.png", number, 96)
        write_mask(tmp_path / f"in/{name}_mask.png", 96)
    words = ("tiles", tmp_path / "in", *COMMON)
    grouped = ("--slide", r"(p\d)-")
    assert htd(*words, *grouped).code == 0
    parted = htd(*words)
    assert parted.code == 2
    assert "2 tiles of cohort 'c' have another slide now, such as p1-a.png" in parted.text
    owned = htd(*words, *grouped, "--patient", r"(p\d)-")
    assert owned.code == 2
    assert "3 tiles of cohort 'c' have another patient now, such as p1-a.png: 'p1'" in owned.text
    (tmp_path / "train").mkdir()
    (tmp_path / "in").rename(tmp_path / "train/in")
    (tmp_path / "train").rename(tmp_path / "in")
    (tmp_path / "in/in").rename(tmp_path / "in/train")
    placed = htd(*words, *grouped)
    assert placed.code == 2
    assert "3 tiles of cohort 'c' have another split now" in placed.text
    assert "'train' instead of 'none'" in placed.text
    assert htd(*words, *grouped, "--replace").code == 0
    write_slide(tmp_path / "in/train/more/p2-a.png", 9, 96)
    write_mask(tmp_path / "in/train/more/p2-a_mask.png", 96)
    assert htd(*words, *grouped).code == 0
