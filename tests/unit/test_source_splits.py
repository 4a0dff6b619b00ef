"""The splits of slides and tiles by the folders that they lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from heterotissue.sources.records import Found
from heterotissue.sources.split_folders import check_split_folders, split_of
from shared.contracts.base import Split
from shared.errors import InputError
from tests.source_files import slide, sources


def splits_in(tmp_path: Path, *paths: Path) -> tuple[dict[str, Split | None], str]:
    made = sources(tmp_path, *paths)
    assert not made.refused
    return {item.slide: item.split for item in made.slides}, " ".join(made.notes)


def test_folders_give_slides_their_splits(tmp_path: Path) -> None:
    for place in ("training/tumor/t1.svs", "training/normal/n1.svs", "Testing/images/x1.svs"):
        slide(tmp_path / "in" / place)
    splits, notes = splits_in(tmp_path, tmp_path / "in")
    assert splits == {"t1": "train", "n1": "train", "x1": "test"}
    assert "splits are those that the folders name (2 train, 1 test)" in notes
    slide(tmp_path / "in/valid/v1.svs")
    assert splits_in(tmp_path, tmp_path / "in")[0]["v1"] == "val"


def test_folders_of_one_split_alone_are_pointed_out(tmp_path: Path) -> None:
    slide(tmp_path / "in/test/a.svs")
    splits, notes = splits_in(tmp_path, tmp_path / "in")
    assert splits == {"a": "test"}
    assert "(1 test), so that all slides are in one" in notes
    assert splits_in(tmp_path, tmp_path / "in/test")[0] == {"a": None}  # that folder was asked for


def test_folders_or_files_that_are_given_count_by_what_differs(tmp_path: Path) -> None:
    files = [slide(tmp_path / f"in/{place}/x/{place}.svs") for place in ("train", "test")]
    expected = {"train": "train", "test": "test"}
    assert splits_in(tmp_path, *files)[0] == expected
    assert splits_in(tmp_path, tmp_path / "in/train", tmp_path / "in/test")[0] == expected
    table = tmp_path / "t.csv"
    table.write_text("path\nin/train/x/train.svs\nin/test/x/test.svs\n")
    assert splits_in(tmp_path, table)[0] == expected


@pytest.mark.parametrize("other", ["eval", "hold_out", "external", "centre-3", "test_set", "."])
def test_slides_without_a_split_beside_folders_of_splits_are_refused(
    tmp_path: Path, other: str
) -> None:
    slide(tmp_path / "in/train/a.svs")
    slide(tmp_path / f"in/{other}/b.svs")
    with pytest.raises(InputError, match=r"1 slides lie in no folder .* a column split") as e:
        sources(tmp_path, tmp_path / "in")
    assert f"({Path(other) / 'b.svs'})" in str(e.value)
    table = tmp_path / "t.csv"
    table.write_text("slide,split\na,val\nb,test\n")
    splits, notes = splits_in(tmp_path, table, tmp_path / "in")
    assert splits == {"a": "val", "b": "test"}  # the table comes first
    assert "the table gives 1 slides another split than their folders name" in notes
    assert "train/a.svs: val" in notes


def test_a_slide_of_two_splits_is_refused_alone(tmp_path: Path) -> None:
    for place in ("train/a.svs", "test/train/b.svs"):
        slide(tmp_path / "in" / place)
    made = sources(tmp_path, tmp_path / "in")
    assert [item.slide for item in made.slides] == ["a"]
    assert "in the folders of several splits (test, train)" in made.refused[0].reason


def test_folders_like_splits_are_noted_where_none_is_one() -> None:
    below = [Path("test_set/a.png"), Path("hold-out/b.png"), Path("more/c.png"), Path("latest/d")]
    found = Found()
    check_split_folders({path: split_of(path) for path in below}, found, "tiles")
    assert found.notes == [
        "folders hold-out, test_set are not taken for splits: name them train, val or test if they "
        "are"
    ]


@pytest.mark.parametrize("given", [True, False])
def test_masks_beside_folders_of_splits_need_no_split(tmp_path: Path, given: bool) -> None:
    for name, split in (("a", "train"), ("b", "test")):
        slide(tmp_path / f"in/{split}/{name}.tif")
        slide(tmp_path / f"in/masks/{name}{'' if given else '_mask'}.tif")
    if given:
        slide(tmp_path / "in/masks/gone.tif")  # of no slide
    labels = tmp_path / "in/masks" if given else None
    made = sources(tmp_path, tmp_path / "in", labels=labels, use_labels=True)
    assert {item.slide: item.split for item in made.slides} == {"a": "train", "b": "test"}
    assert all(item.labels for item in made.slides) == given
    notes = " ".join(made.notes)
    assert ("masks/gone.tif: in the folder of annotations, but of no slide's" in notes) == given


def test_a_folder_of_annotations_with_all_slides_in_it_leaves_none_out(tmp_path: Path) -> None:
    for name in ("a.svs", "b.svs"):
        slide(tmp_path / "in" / name)
    slide(tmp_path / "in/a.geojson")
    made = sources(tmp_path, tmp_path / "in", labels=tmp_path / "in", use_labels=True)
    assert {item.slide for item in made.slides} == {"a", "b"}


def test_equal_content_in_two_splits_is_refused_and_not_said_to_be_taken(tmp_path: Path) -> None:
    for place in ("test/a.svs", "test/b.svs", "train/x.svs"):
        slide(tmp_path / "in" / place, "equal")
    made = sources(tmp_path, tmp_path / "in")
    (refused,) = made.refused
    assert refused.path == str(tmp_path / "in/train/x.svs")
    assert "has the same content as test/a.svs, but another split" in refused.reason
    (note,) = [note for note in made.notes if "taken once" in note]
    assert note == "test/b.svs has the same content as test/a.svs: taken once"
