"""Cohorts of tiles through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.imaging.region_sets import RegionIndex, load_region_set
from tests.formats.cohort_files import write_mask, write_slide


def write_tile(path: Path, seed: int, side: int = 96, mask: str = "{}_mask.png") -> None:
    write_slide(path, seed, side)
    write_mask(path.with_name(mask.format(path.stem)), side)


TILES = ("--classes", "pink,violet", "--mpp", "0.5")


def test_a_bad_tile_costs_itself_alone(htd: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(4):
        write_tile(folder / f"p{number}.png", number)
    write_slide(folder / "bare.png", 10, 96)
    write_slide(folder / "._p0.png", 11, 96)
    (folder / "folder.png").mkdir()
    write_tile(folder / "empty.png", 12)
    (folder / "empty.png").write_bytes(b"")
    write_tile(folder / "broken.png", 13)
    (folder / "broken.png").write_bytes((folder / "p0.png").read_bytes()[:3000])
    write_tile(folder / "q.png", 0)  # the pixels of p0, but another mask
    write_mask(folder / "q_mask.png", 48)
    write_tile(folder / "noimage.png", 14)
    (folder / "noimage.png").write_bytes(b"no image")
    done = htd("tiles", folder, *TILES)
    assert done.code == 3
    regions = load_region_set(done.store, "c")
    assert [part.slide for part in regions.slides if part.regions] == ["p0", "p1", "p2", "p3"]
    for name in ("bare.png: has no mask", "empty.png: is empty", "broken", "noimage.png: cannot",
                 "q.png: has the same content as p0.png, but another mask"):  # fmt: skip
        assert name in done.text
    assert "._p0" not in done.text
    assert "folder.png" not in done.text
    assert regions.rule.size == 96  # the largest that fits


def test_tile_names_as_of_bcss_and_tcga(htd: Any, tmp_path: Path) -> None:
    names = ["TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500", "TCGA-A1-A0SP-DX1_xmin6798",
             "TCGA-CR-7395-01A-01-TS1.2f6d5f10-8a1f-4a30-8a3c-0a2e0bd9bcc0_x12345_y12345",
             "瓦片" * 20]  # fmt: skip
    for number, name in enumerate(names):
        write_tile(tmp_path / f"in/{name}.png", number)
    done = htd("tiles", tmp_path / "in", *TILES)
    assert done.code == 0, done.text
    regions = load_region_set(done.store, "c")
    assert {part.patient for part in regions.slides} == {
        "TCGA-A1-A0SK", "TCGA-A1-A0SP", "TCGA-CR-7395", None,
    }  # fmt: skip
    read = list(RegionIndex(done.store, regions, "train", "val", "test"))
    assert len(read) == 4
    assert all(set(np.unique(region.labels)) == {0, 1, 2} for region in read)


def test_a_rule_that_tells_the_sample_of_a_tile_tells_its_patient(htd: Any, tmp_path: Path) -> None:
    for number, sample in enumerate(("0001-01A", "0001-11A", "0002-01A")):
        write_tile(tmp_path / f"in/TCGA-AA-{sample}_{number}.png", number)
    done = htd("tiles", tmp_path / "in", *TILES, "--patient", r"(TCGA-\w+-\w+-\w+)_")
    assert done.code == 0, done.text
    regions = load_region_set(done.store, "c")
    assert {part.patient for part in regions.slides} == {"TCGA-AA-0001", "TCGA-AA-0002"}


def test_tiles_of_equal_names_in_two_folders_are_two_slides(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("train/A", "train/B", "test/C")):
        write_tile(tmp_path / f"in/{place}/001.png", number)
    done = htd("tiles", tmp_path / "in", *TILES)
    assert done.code == 0, done.text
    splits = {part.slide: part.split for part in load_region_set(done.store, "c").slides}
    assert splits == {"train-A-001": "train", "train-B-001": "train", "test-C-001": "test"}
    assert "1 names of tiles are in several splits (001)" in done.text
    same = htd("tiles", tmp_path / "in", *TILES, "--patient", r"(\d+)\.png")
    assert same.code == 2
    assert "tiles of slide '001' are in the splits test, train" in same.text


def test_a_cohort_of_tiles_grows_and_is_not_replaced_unasked(htd: Any, tmp_path: Path) -> None:
    words = ("tiles", tmp_path / "in", *TILES, "--slide", r"p(\d+)")
    for number in range(4):
        write_tile(tmp_path / f"in/p{number}_a.png", number)
    first = load_region_set(htd(*words).store, "c")
    for number in range(4, 8):
        write_tile(tmp_path / f"in/p{number}_a.png", number)
    write_tile(tmp_path / "in/p0_b.png", 30)
    grown = htd(*words)
    assert grown.code == 0, grown.text
    assert "splits_kept 4" in grown.text
    splits = {part.slide: part.split for part in load_region_set(grown.store, "c").slides}
    assert {part.slide: part.split for part in first.slides}.items() <= splits.items()
    assert list(splits.values()).count("test") == 2
    for number in range(2):
        write_tile(tmp_path / f"others/p{number}_a.png", 40 + number)
    finer = htd(*words, "--mpp", "0.25", "--region-mpp", "0.5")
    assert finer.code == 2
    assert "were taken at 0.5 µm/px, not at 0.25" in finer.text
    shutil.copy(tmp_path / "in/p0_a.png", tmp_path / "in/p0_c.png")
    Image.new("L", (96, 96), 1).save(tmp_path / "in/p0_c_mask.png")
    assert "p0_c.png: has the same content as p0_a.png, but another mask" in htd(*words).text
    others = (words[0], tmp_path / "others", *words[2:])
    refused = htd(*others)
    assert refused.code == 2
    assert "cohort 'c' has 9 tiles that are not among these" in refused.text
    assert len(load_region_set(refused.store, "c").slides) == 8
    replaced = htd(*others, "--replace")
    assert replaced.code == 0
    assert "splits_kept" not in replaced.text


def test_tiles_that_are_grouped_otherwise_keep_their_splits_or_are_named(
    htd: Any, tmp_path: Path
) -> None:
    for slide in "abcd":
        for x in (0, 512):
            write_tile(tmp_path / f"in/{slide}_{x}_512.png", ord(slide) + x)
    words = ("tiles", tmp_path / "in", *TILES)
    alone = htd(*words)
    assert "some slides of one patient may be in more than one split" in alone.text
    before = {part.slide: part.split for part in load_region_set(alone.store, "c").slides}
    refused = htd(*words, "--slide", r"^([a-d])_")
    assert refused.code == 2
    assert "8 tiles of cohort 'c' have another slide now" in refused.text
    assert "a_0_512.png: 'a' instead of 'a_0_512'" in refused.text
    joined = htd(*words, "--slide", r"^([a-d])_", "--replace")
    after = {part.slide: part.split for part in load_region_set(joined.store, "c").slides}
    for slide, split in after.items():
        parted = {before[f"{slide}_{x}_512"] for x in (0, 512)}
        if len(parted) == 1:
            assert parted == {split}
        else:
            assert f"{slide} test, train → {split}" in joined.text
    assert "splits changed" in joined.text


def test_what_folders_and_masks_say_of_classes_must_be_clear(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("normal", "polyp", "more/Normal")):
        path = write_slide(tmp_path / f"in/{place}/{number}.png", number, 96)
        mask = Image.new("1", (96, 96))
        mask.paste(1, (0, 0, 48, 96))
        mask.save(path.with_name(f"{number}_mask.png"))
    words = ("tiles", tmp_path / "in", "--mpp", "0.5", "--classes")
    mixed = htd(*words, "tumor,stroma,normal")
    assert mixed.code == 2
    assert "have the name of a class (normal)" in mixed.text
    assert "those of others have not (polyp)" in mixed.text
    write_slide(tmp_path / "in/odd.png", 8, 96)  # whose mask has a value that is no class
    Image.new("L", (96, 96), 255).save(tmp_path / "in/odd_mask.png")
    binary = htd(*words, "tumor,stroma")
    assert binary.code != 0
    assert "the masks of all 3 tiles that can be used hold 0 and 1 alone" in binary.text
    (tmp_path / "in/odd.png").unlink()
    (tmp_path / "in/odd_mask.png").unlink()
    assert "there are 2 (tumor, stroma)" in binary.text
    assert "--classes tumor or --set 'label_names={\"1\": tumor}'" in binary.text
    assert not binary.store.exists("regions/c/set.json")
    named = htd(*words, "tumor,stroma", "--set", "label_names={1: stroma}")
    assert named.code == 0, named.text
    right = htd(*words, "polyp,normal", "--replace")
    assert right.code == 0, right.text
    read = RegionIndex(right.store, load_region_set(right.store, "c"), "train", "val", "test")
    assert {region.slide: int(region.labels.max()) for region in read} == {"0": 2, "1": 1, "2": 2}
    write_tile(tmp_path / "in/polyp/normal/x.png", 9)
    assert (
        "lies in the folders of several classes: polyp, normal" in htd(*words, "polyp,normal").text
    )


def test_an_edited_mask_makes_new_regions(htd: Any, tmp_path: Path) -> None:
    write_tile(tmp_path / "in/a.png", 0)
    htd("tiles", tmp_path / "in", *TILES)
    Image.fromarray(np.full((96, 96), 2, np.uint8)).save(tmp_path / "in/a_mask.png")
    done = htd("tiles", tmp_path / "in", *TILES)
    assert "1 tiles of cohort 'c' have another mask now: a.png" in done.text
    (region,) = RegionIndex(done.store, load_region_set(done.store, "c"), "train")
    assert (region.labels == 2).all()


def test_masks_may_lie_in_a_folder_of_their_own(htd: Any, tmp_path: Path) -> None:
    for number in range(2):
        write_slide(tmp_path / f"in/images/{number}.jpg", number, 96)
        write_mask(tmp_path / f"in/masks/{number}.png", 96)
    done = htd("tiles", tmp_path / "in", *TILES, "--masks", tmp_path / "in/masks")
    assert done.code == 0, done.text
    assert [part.slide for part in load_region_set(done.store, "c").slides] == ["0", "1"]
    wrong = htd("tiles", tmp_path / "in/images", *TILES, "--masks", tmp_path / "no")
    assert wrong.code == 2


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_qupath_exports_tiles_with_labels_of_their_names(
    htd: Any, tmp_path: Path, suffix: str
) -> None:
    for number in range(4):
        name = f"S21 [x={number},y=0,w=96,h=96]"
        write_slide(tmp_path / f"in/{number % 2}/{name}{suffix}", number, 96)
        write_mask(tmp_path / f"in/{number % 2}/{name}.png", 96)
    silent = htd("tiles", tmp_path / "in", *TILES)
    assert silent.code == 2
    assert "is its mask, give the tiles' own folder by --masks too" in silent.text
    for place, masks, count in (("in/0", "in/0", 2), ("in/1", "in", 2), ("in", "in", 4)):
        words = ("tiles", tmp_path / place, *TILES, "--masks", tmp_path / masks)
        done = htd(*words, "--replace")
        assert done.code == 0, done.text
        read = list(
            RegionIndex(done.store, load_region_set(done.store, "c"), "train", "val", "test")
        )
        assert len(read) == count
        assert all(set(np.unique(region.labels)) == {0, 1, 2} for region in read)


def test_masks_of_the_names_of_tiles_may_lie_in_folders_beside_theirs(
    htd: Any, tmp_path: Path
) -> None:
    for number, split in enumerate(("train", "val", "test")):
        write_slide(tmp_path / f"in/{split}/images/{split}.png", number, 96)
        write_mask(tmp_path / f"in/{split}/{('masks', 'Labels', 'gt')[number]}/{split}.png", 96)
    for given in ((), ("--masks", tmp_path / "in")):
        done = htd("tiles", tmp_path / "in", *TILES, *given)
        assert done.code == 0, done.text
    assert "splits are those that the folders name (1 train, 1 val, 1 test)" in done.text
    (tmp_path / "in/test/labels").mkdir()
    shutil.copy(tmp_path / "in/test/gt/test.png", tmp_path / "in/test/labels")
    write_slide(tmp_path / "in/val/images/bare.png", 7, 96)
    write_mask(tmp_path / "in/val/Labels/other.png", 96)
    doubtful = htd("tiles", tmp_path / "in", *TILES, "--replace")
    assert doubtful.code == 3
    for text in ("test/images/test.png: may have any of several masks",
                 "val/images/bare.png: has no mask",
                 "val/Labels/other.png: has no mask"):  # fmt: skip
        assert text in doubtful.text


def test_a_mask_beside_the_folders_of_two_tiles_is_neithers(htd: Any, tmp_path: Path) -> None:
    for number, place in enumerate(("a", "b")):
        write_slide(tmp_path / f"in/{place}/1.png", number, 96)
    write_mask(tmp_path / "in/masks/1.png", 96)
    done = htd("tiles", tmp_path / "in", *TILES)
    assert done.code == 2
    assert "its mask 1.png may be that of" in done.text


def test_tiles_beside_folders_of_splits_are_refused(htd: Any, tmp_path: Path) -> None:
    write_tile(tmp_path / "in/train/a.png", 0)
    write_tile(tmp_path / "in/eval/b.png", 1)
    refused = htd("tiles", tmp_path / "in", *TILES)
    assert refused.code == 2
    assert "1 tiles lie in no folder named train, val or test (eval/b.png)" in refused.text
    (tmp_path / "in/eval").rename(tmp_path / "in/val")
    assert htd("tiles", tmp_path / "in", *TILES).code == 0
