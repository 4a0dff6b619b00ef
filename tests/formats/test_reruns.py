"""A command that is run again: what has changed is made again, what has not is kept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from heterotissue import cli
from shared.contracts.embed import features_key
from shared.contracts.ingest import CohortRecord, cohort_key, label_map_key, patches_key
from shared.imaging.label_map import LabelMap
from shared.storage import DirectoryStore
from tests.texture_slides import texture_slide

OPTIONS = ("--classes", "dots,fibres,blobs", "--mpp", "1.0", "--region-size", "128", "--region-mpp",
           "1.0", "--set", "regions.max_per_slide=2")  # fmt: skip


def write_slide(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    image, labels = texture_slide(512, seed)
    tifffile.imwrite(folder / f"{name}.tif", image, tile=(256, 256), photometric="rgb")
    write_labels(folder, name, labels)


def write_labels(folder: Path, name: str, labels: np.ndarray) -> None:
    tifffile.imwrite(folder / f"{name}_mask.tif", labels)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    for seed, name in enumerate(("s1", "s2")):
        write_slide(folder, name, seed)
    return folder


def htd(store: DirectoryStore, *words: object) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["htd", *map(str, words), "--store", store.url])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def ingest(store: DirectoryStore, folder: Path, *more: str, cohort: str = "c") -> int:
    return htd(store, "ingest", folder, "--cohort", cohort, *OPTIONS, *more)


def record(store: DirectoryStore, cohort: str = "c") -> CohortRecord:
    return store.get_model(cohort_key(cohort), CohortRecord)


def label_map(store: DirectoryStore, slide: str, cohort: str = "c") -> np.ndarray:
    key = label_map_key(record(store, cohort).folder(slide), cohort)
    with LabelMap(store.local(key)) as labels:
        return labels.whole()


@pytest.mark.parametrize("more", [(), ("--in-place",)])
def test_an_edited_mask_makes_another_label_map_and_the_old_one_comes_back(
    store: DirectoryStore, slides: Path, more: tuple[str, ...]
) -> None:
    mask = slides / "s1_mask.tif"
    first = tifffile.imread(mask)
    assert ingest(store, slides, *more) == 0
    assert np.array_equal(label_map(store, "s1"), first)
    size, times = mask.stat().st_size, mask.stat()
    edited = np.where(first == 1, 2, first)
    for labels in (edited, first):
        write_labels(slides, "s1", labels)
        os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert mask.stat().st_size == size
        before = store.stat(patches_key("c", "s2"))
        assert ingest(store, slides, *more) == 0
        assert np.array_equal(label_map(store, "s1"), labels)
        assert store.stat(patches_key("c", "s2")) == before, "the other slide is kept"


def test_two_cohorts_have_their_own_slides_of_one_name(
    store: DirectoryStore, slides: Path, tmp_path: Path
) -> None:
    others, clean = tmp_path / "others", DirectoryStore(tmp_path / "clean")
    for seed, name in ((7, "s1"), (8, "s2")):
        write_slide(others, name, seed)
    assert ingest(store, slides, cohort="a") == 0
    assert ingest(store, others, cohort="b") == 0
    assert ingest(clean, slides, cohort="a") == 0
    for each in (store, clean):
        assert htd(each, "embed", "--cohort", "a", "--encoder", "random") == 0
    found, expected = (
        h5py.File(each.local(features_key("random", "a", "s1")))["features"][:]
        for each in (store, clean)
    )
    assert np.array_equal(found, expected)
    assert np.array_equal(label_map(store, "s1", "a"), tifffile.imread(slides / "s1_mask.tif"))
    assert np.array_equal(label_map(store, "s1", "b"), tifffile.imread(others / "s1_mask.tif"))


def test_a_cohort_grows_by_what_is_new(store: DirectoryStore, slides: Path) -> None:
    assert ingest(store, slides) == 0
    assert htd(store, "embed", "--cohort", "c", "--set", "train_steps=2") == 0
    splits = record(store).splits
    kept = [patches_key("c", "s1"), features_key("embedded", "c", "s1")]
    before = [store.stat(key) for key in kept]
    write_slide(slides, "s3", 5)
    assert ingest(store, slides) == 0
    assert htd(store, "embed", "--cohort", "c", "--set", "train_steps=2") == 0
    assert [store.stat(key) for key in kept] == before
    assert splits.items() <= record(store).splits.items()
    assert store.exists(features_key("embedded", "c", "s3"))


def test_other_slides_do_not_take_a_cohorts_name(
    store: DirectoryStore, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    write_slide(others, "s1", 7)
    assert ingest(store, slides) == 0
    before = store.get(cohort_key("c"))
    assert ingest(store, others) == 2
    assert "--replace" in " ".join(capsys.readouterr().err.split())
    (slides / "s2.tif").unlink()
    assert ingest(store, slides) == 2, "a slide is gone"
    assert store.get(cohort_key("c")) == before
    assert ingest(store, others, "--replace") == 0
    assert set(record(store).splits) == {"s1"}


@pytest.mark.parametrize("lost", ["labels", "regions", "cohorts", "patches", "slides"])
def test_what_is_gone_is_made_again(store: DirectoryStore, slides: Path, lost: str) -> None:
    assert ingest(store, slides) == 0
    kept = {key: store.get(key) for key in store.list() if not key.startswith(("jobs/", "open"))}
    if lost == "labels":
        store.delete(label_map_key(record(store).folder("s1"), "c"))
    else:
        shutil.rmtree(Path(store.url) / lost)
    assert ingest(store, slides) == 0
    assert {key: store.get(key) for key in kept} == kept


def test_a_slide_that_changed_under_a_cohort_is_not_used(
    store: DirectoryStore, slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest(store, slides, "--in-place") == 0
    write_slide(slides, "s1", 9)
    assert htd(store, "embed", "--cohort", "c", "--encoder", "random") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("s1.tif has changed since it was recorded") == 1


def test_a_cohort_of_tiles_leaves_nothing_of_the_slides_that_it_replaces(
    store: DirectoryStore, slides: Path, tmp_path: Path
) -> None:
    tiles = tmp_path / "tiles"
    write_slide(tiles, "q", 3)
    assert ingest(store, slides) == 0
    words = ("tiles", tiles, "--cohort", "c", "--classes", "dots,fibres,blobs", "--mpp", "1.0",
             "--region-size", "128")  # fmt: skip
    assert htd(store, *words) == 2
    assert htd(store, *words, "--replace") == 0
    assert not store.exists(cohort_key("c"))
    assert htd(store, "embed", "--cohort", "c") == 2


def test_labels_go_with_a_cohort_that_is_replaced_by_one_without(
    store: DirectoryStore, slides: Path
) -> None:
    assert ingest(store, slides) == 0
    plain = ("ingest", slides, "--cohort", "c", "--mpp", "1.0", "--region-mpp", "1.0", "--replace")
    assert htd(store, *plain) == 0
    assert not list(store.list("regions/c/set.json"))


def test_a_link_to_a_slide_does_not_hide_its_annotation(
    store: DirectoryStore, slides: Path
) -> None:
    (slides / "a-link.tif").symlink_to(slides / "s1.tif")
    assert ingest(store, slides) == 0
    assert set(record(store).splits) == {"s1", "s2"}
    assert label_map(store, "s1").any()


def test_slides_that_are_stored_turned_are_refused(
    store: DirectoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "turned"
    write_slide(folder, "s", 0)
    tag = (274, "H", 1, 3, True)
    image = tifffile.imread(folder / "s.tif")
    tifffile.imwrite(folder / "s.tif", image, tile=(256, 256), photometric="rgb", extratags=[tag])
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(folder / "p.jpg", exif=exif)
    assert ingest(store, folder, "--mpp", "0.5") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("stored turned") == 2
    assert "--keep-source" not in said  # that copy would be refused too


def test_one_spelling_of_a_patient_is_another_of_the_same(
    store: DirectoryStore, slides: Path, tmp_path: Path
) -> None:
    table = tmp_path / "slides.csv"
    table.write_text(f"path,patient,split\n{slides}/s1.tif,P1,train\n{slides}/s2.tif,p1 ,test\n")
    words = ("ingest", "--table", table, "--cohort", "c", *OPTIONS)
    assert htd(store, *words) == 2
    assert htd(store, *words, "--allow-leakage") == 0
    assert set(record(store).patients.values()) == {"P1"}
    assert "P1" in record(store).cautions[0]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_label_map_that_is_not_as_it_was_made_is_refused_and_made_again(
    store: DirectoryStore, slides: Path, capsys: pytest.CaptureFixture[str], swapped: bool
) -> None:
    assert ingest(store, slides) == 0
    whole = label_map(store, "s1")
    key, other = (label_map_key(record(store).folder(name), "c") for name in ("s1", "s2"))
    data = bytearray(store.get(other if swapped else key))
    if not swapped:
        data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    out = slides.parent / "s1.geojson"
    assert htd(store, "labels", "s1", "--cohort", "c", "--format", "qupath", "--out", out) == 2
    said = capsys.readouterr().err
    assert key in said
    assert "run 'htd ingest'" in said
    assert not out.exists()
    assert ingest(store, slides, "--fresh") == 0
    assert np.array_equal(label_map(store, "s1"), whole)
    assert htd(store, "labels", "s1", "--cohort", "c", "--format", "qupath", "--out", out) == 0


def test_a_slide_whose_mask_is_gone_has_no_labels_any_more(
    store: DirectoryStore, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ingest(store, slides) == 0
    before = label_map_key(record(store).folder("s1"), "c")
    stale = store.local(before).read_bytes()
    (slides / "s1_mask.tif").unlink()
    assert ingest(store, slides) == 0
    assert not store.exists(before)
    store.put(before, stale)  # as programs of before have left it
    assert htd(store, "labels", "s1", "--cohort", "c", "--out", tmp_path / "s1.geojson") != 0
    assert "slide 's1' of cohort 'c' has no labels" in " ".join(capsys.readouterr().err.split())
