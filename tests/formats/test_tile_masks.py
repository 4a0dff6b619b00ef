"""Which mask is a tile's, and which is another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    assert "its mask 1.png may be that of" in done.text
    assert "labelled 1" in done.text


def test_several_masks_of_a_tile_are_named(htd: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "tiles/1.png", 1, 96)
    for ending in ("_mask", "_seg"):
        write_mask(tmp_path / f"tiles/1{ending}.png", 96)
    done = htd("tiles", tmp_path / "tiles", *COMMON, "--cohort", "c")
    assert done.code == 0, done.text
    assert "1.png has several masks: 1_mask.png, 1_seg.png; taken: 1_mask.png" in done.text
