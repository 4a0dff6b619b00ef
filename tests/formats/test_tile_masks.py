"""Which mask is a tile's, and which is another's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.contracts.base import Classes
from shared.errors import InputError
from shared.imaging.mask_values import lookup, stated_colors
from shared.imaging.masks import open_mask
from shared.imaging.region_sets import load_region_set
from tests.formats.cohort_files import write_mask, write_slide

COMMON = ("--classes", "tumor,stroma", "--mpp", "0.5")


def test_a_mask_of_another_folders_tile_is_not_taken(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("A/1", "A/2", "B/1", "B/3")):
        write_slide(tmp_path / f"tiles/{place}.png", number, 96)
    for place in ("A/1", "A/2", "A/3", "B/1"):
        write_mask(tmp_path / f"masks/{place}.png", 96)
    done = htd("tiles", tmp_path / "tiles", "--masks", tmp_path / "masks", *COMMON, "--cohort", "c")
    assert done.code == 3, done.text
    assert "left out: B/3.png: has no mask" in done.text
    assert "A/3.png may be of another folder's" in done.text
    assert "labelled 3" in done.text


def test_tiles_that_would_share_a_mask_are_left_out(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("A/1", "B/1", "B/2")):
        write_slide(tmp_path / f"tiles/{place}.png", number, 96)
    for name in ("1", "2"):
        write_mask(tmp_path / f"masks/{name}.png", 96)
    done = htd("tiles", tmp_path / "tiles", "--masks", tmp_path / "masks", *COMMON, "--cohort", "c")
    assert (
        "left out: 2 files (A/1.png, B/1.png): its mask 1.png may be that of any of A/1.png, "
        "B/1.png: put masks into the same subfolders as tiles"
    ) in done.text
    assert "labelled 1" in done.text


def test_the_remedy_for_a_shared_mask_works(htd: Any, tmp_path: Path) -> None:
    for number, suffix in enumerate((".jpg", ".png")):
        write_slide(tmp_path / f"tiles/same{suffix}", number, 96)
    mask = write_mask(tmp_path / "tiles/same_mask.png", 96)
    words = ("tiles", tmp_path / "tiles", *COMMON, "--cohort", "c")
    done = htd(*words)
    assert done.code == 2
    assert "same_mask.png may be that of any of same.jpg, same.png: give each its" in done.text
    copy = tmp_path / "tiles/a/copy.png"  # is taken, because its mask is its own
    copy.parent.mkdir()
    shutil.copyfile(tmp_path / "tiles/same.png", copy)
    shutil.copyfile(mask, copy.with_name("copy_mask.png"))
    done = htd(*words)
    assert done.code == 3, done.text
    assert "labelled 1" in done.text
    shutil.rmtree(copy.parent)
    assert "such as same.jpg_mask.png" in done.text
    mask.rename(tmp_path / "tiles/same.jpg_mask.png")
    write_mask(tmp_path / "tiles/same.png_mask.png", 96)
    done = htd(*words)
    assert done.code == 0, done.text
    assert "labelled 2" in done.text


def test_values_and_colours_of_masks_are_not_mixed(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 2, 0] * 16)
    image.save(tmp_path / "a.png")
    classes = Classes.of("a", "b")
    with pytest.raises(
        InputError, match=r"\[#00ff00\]\. Values \('2'\) are not read beside colours"
    ):
        lookup(open_mask(tmp_path / "a.png"), classes, {"#ff0000": "b", "2": "a"})


@pytest.mark.parametrize("key", ["#f00", "#ff00000", "0,256,0", "rgb(0,255,0)", "10%,20%,30%"])
def test_what_looks_like_a_colour_but_is_none_is_named(key: str, htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "in/a.png", 1, 96)
    write_mask(tmp_path / "in/a_mask.png", 96)
    words = ("tiles", tmp_path / "in", *COMMON, "--cohort", "c", "--rename")
    refused = htd(*words, f"{key}=tumor")
    assert refused.code == 2
    assert f"'{key}' of --rename (label_names) is no colour that is read: write it" in refused.text
    noted = htd(*words, "lime=tumor")
    assert noted.code == 0
    assert "--rename 'lime' is no folder here, no value of masks (a number) and no" in noted.text
    assert stated_colors({"#FF8000": "a", "1, 2,3": "b", "#1": "c"}) == {
        0xFF8000: "#FF8000", 0x010203: "1, 2,3",
    }  # fmt: skip


def test_several_masks_of_a_tile_are_named(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "tiles/1.png", 1, 96)
    for ending in ("_mask", "_seg"):
        write_mask(tmp_path / f"tiles/1{ending}.png", 96)
    done = htd("tiles", tmp_path / "tiles", *COMMON, "--cohort", "c")
    assert done.code == 0, done.text
    assert "1.png has several masks, which are equal: 1_mask.png, 1_seg.png" in done.text


def test_a_tile_of_masks_that_differ_is_left_out(htd: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        write_slide(tmp_path / f"{number}.png", number, 96)
        write_mask(tmp_path / f"{number}_mask.png", 96)
    Image.new("L", (96, 96), 2).save(tmp_path / "1.mask.png")
    done = htd("tiles", tmp_path, *COMMON, "--cohort", "c")
    assert done.code == 3, done.text
    assert (
        "left out: 1.png: has several masks, which differ: 1_mask.png, 1.mask.png. Keep the right "
        "one, and remove or rename the others"
    ) in done.text
    assert [part.slide for part in load_region_set(done.store, "c").slides] == ["2"]


def test_names_are_no_masks_where_masks_have_their_own_folder(htd: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b_seg", "a_gt")):
        write_slide(tmp_path / f"tiles/{name}.png", number, 96)
        write_mask(tmp_path / f"masks/{name}.png", 96)
    words = ("tiles", tmp_path / "tiles", *COMMON, "--cohort")
    assert "labelled 3" in htd(*words, "c", "--masks", tmp_path / "masks").text
    write_mask(tmp_path / "tiles/a_mask.png", 96)
    write_mask(tmp_path / "tiles/b_seg_mask.png", 96)
    beside = htd(*words, "c", "--replace").text
    assert "a.png: has several masks, which differ: a_mask.png, a_gt.png" in beside
    assert "skipped 1 images without a tile, which are masks by their names: b_seg.png" in beside


def test_coarse_tiles_are_not_magnified(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "a.png", 1, 96)
    write_mask(tmp_path / "a_mask.png", 96)
    words = ("tiles", tmp_path, "--classes", "tumor,stroma", "--mpp", "2", "--cohort", "c")
    done = htd(*words, "--region-mpp", "0.5")
    assert done.code == 2
    assert "the tiles have 2 µm/px, too coarse for regions of 0.5" in done.text


def test_folders_like_splits_are_not_passed_over(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("train", "test_set")):
        write_slide(tmp_path / f"{place}/{number}.png", number, 96)
        write_mask(tmp_path / f"{place}/{number}_mask.png", 96)
    words = ("tiles", tmp_path, *COMMON, "--cohort", "c")
    done = htd(*words)
    assert done.code == 2
    assert "folders test_set are not taken for splits, though others are" in done.text
    (tmp_path / "train").rename(tmp_path / "more")
    assert "folders test_set are not taken for splits: name them" in htd(*words).text


def test_renames_that_match_nothing_are_named(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "a.png", 1, 96)
    write_mask(tmp_path / "a_mask.png", 96)
    renames = ("--rename", "01=stroma", "--rename", "2=tumor", "--rename", "#ff0000=tumor")
    done = htd("tiles", tmp_path, *COMMON, *renames, "--cohort", "c")
    assert done.code == 0, done.text
    assert "renamed, but in no annotation: #ff0000, 01" in done.text
