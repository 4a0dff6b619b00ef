"""OME-Zarr, CZI and iSyntax: formats that extras of the package read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heterotissue.names import remove
from heterotissue.sources import files as slide_finding
from heterotissue.sources import find_slides, slide_sources
from heterotissue.sources.keeping import Sources
from services.ingest.stage import IngestStage
from shared.contracts.base import Classes
from shared.contracts.ingest import (
    CohortRecord,
    IngestRequest,
    PatchGrid,
    SlideSource,
    cohort_key,
    label_map_key,
)
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.imaging import slide_files
from shared.imaging.label_map import LabelMap
from shared.imaging.slide import DamagedError, Slide
from shared.imaging.stored_slides import open_slide
from shared.jobs import Context, JobStatus, Ledger, run_job
from shared.storage import DirectoryStore
from tests.formats.slide_files import halves, picture, write_czi, write_outlines, write_zarr

IMAGE = picture(noise=20)[:500, :460]


def pixels(slide: Slide, level: int) -> Any:
    """Return a whole level, uint8 RGB, as the reader gives it."""
    source = slide._source
    window = source.read_region((0, 0), level, source.level_dimensions[level])
    return np.asarray(window.convert("RGB"))


# --- OME-Zarr ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "yxc"])
def test_ome_zarr_states_its_size_and_has_its_levels(
    tmp_path: Path, version: str, axes: str
) -> None:
    pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.ome.zarr", IMAGE, (0.25, 0.5), version=version, axes=axes)
    with Slide.open(path) as slide:
        assert (slide.vendor, slide.width, slide.height) == ("ome-zarr", 460, 500)
        assert (slide.levels, slide.mpp, slide.mpp_y) == (3, 0.25, 0.5)
        for level, expected in enumerate(halves(IMAGE, 3)):
            assert np.array_equal(pixels(slide, level), expected)
        assert [slide._level(mpp) for mpp in (0.5, 0.99, 1.0, 1.99, 2.0, 9.0)] == [0, 0, 1, 1, 2, 2]
    with Slide.open(path, 1.0) as slide:
        window = slide.read(450, 490, (20, 15), 1.0)
        assert np.array_equal(window[:10, :10], IMAGE[490:, 450:])
        assert (window[10:] == 255).all()
        assert (window[:, 10:] == 255).all()
        assert (slide.read(-5, -5, (9, 9), 1.0)[:5] == 255).all()


@pytest.mark.parametrize(
    ("unit", "step", "expected"),
    [("nanometer", 500, 0.5), ("millimeter", 0.0005, 0.5), (None, 0.5, None), ("pixel", 1, None)],
)
def test_units_of_ome_zarr(
    tmp_path: Path, unit: str | None, step: float, expected: float | None
) -> None:
    pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.zarr", IMAGE[:64, :64], (step, step), unit=unit, levels=1)
    if expected is None:
        with pytest.raises(InputError, match=r"a\.zarr states no resolution: pass --mpp"):
            Slide.open(path)
    else:
        with Slide.open(path) as slide:
            assert slide.mpp == pytest.approx(expected)


def test_ome_zarr_of_bioformats2raw_and_of_shards(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "a.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    write_zarr(path / "0", IMAGE[:64, :64], version="0.4", levels=1)  # the label
    write_zarr(path / "1", IMAGE, version="0.4", levels=1)
    with Slide.open(path) as slide:
        assert np.array_equal(pixels(slide, 0), IMAGE)
    sharded = write_zarr(tmp_path / "b.zarr", IMAGE, axes="cyx", levels=1, shards=(3, 512, 512))
    assert len(list(sharded.rglob("c/**/0"))) >= 1
    with Slide.open(sharded) as slide:
        assert np.array_equal(pixels(slide, 0), IMAGE)


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (IMAGE.astype(np.uint16), {}, "holds uint16"),
        (IMAGE[..., :2], {}, "has 2 channels, not red, green and blue"),
        (IMAGE[..., 0], {}, "has 1 channels"),
    ],
)
def test_ome_zarr_of_other_things_is_refused(
    tmp_path: Path, image: Any, options: dict[str, Any], said: str
) -> None:
    pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.zarr", image, levels=1, **options)
    with pytest.raises(InputError, match=said):
        Slide.open(path)


@pytest.mark.parametrize(
    ("codec", "said"),
    [("base64", "is compressed by base64"), ("pickle", "pickle"), ("nonesuch", "not read")],
)
def test_ome_zarr_of_unknown_codecs_is_refused(tmp_path: Path, codec: str, said: str) -> None:
    pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.zarr", IMAGE[:64, :64], version="0.4", levels=1)
    facts = json.loads((path / "0/.zarray").read_text())
    (path / "0/.zarray").write_text(json.dumps(facts | {"compressor": {"id": codec}}))
    with pytest.raises(InputError, match=said):
        Slide.open(path)


def test_ome_zarr_that_is_no_slide_is_refused(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.zarr", IMAGE[:64, :64], levels=1)
    facts = json.loads((path / "zarr.json").read_text())
    image = facts["attributes"]["ome"]["multiscales"][0]

    def refused(said: str) -> None:
        (path / "zarr.json").write_text(json.dumps(facts))
        with pytest.raises(InputError, match=said):
            Slide.open(path)

    (outside,) = image["datasets"]
    for name in ("../b.zarr/0", "/etc", ".", ""):
        outside["path"] = name
        refused("names a level outside of its folder")
    outside["path"] = "7"
    refused(r"a\.zarr cannot be opened as OME-Zarr")
    del facts["attributes"]["ome"]["multiscales"]
    refused("no OME-Zarr image")
    facts["attributes"]["ome"]["plate"] = {}
    refused("fields of a plate")
    (path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="damaged, incomplete"):
        Slide.open(path)
    write_zarr(tmp_path / "z.zarr", IMAGE[:64, :64], levels=1)
    array = zarr.open_group(tmp_path / "z.zarr")["0"]
    array.resize((1, 3, 2, 64, 64))
    with pytest.raises(InputError, match="has 2 planes of focus"):
        Slide.open(tmp_path / "z.zarr")


def test_a_request_may_name_a_folder_without_its_hash(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", IMAGE, (0.5, 0.5))
    store = DirectoryStore(tmp_path / "store")

    def upload() -> None:
        for file in (each for each in path.rglob("*") if each.is_file()):
            store.put_file(f"sources/x/a.zarr/{file.relative_to(path).as_posix()}", file)

    upload()
    named = [str(path), "sources/x/a.zarr"]
    requests = [
        IngestRequest(cohort="c", slides=(SlideSource(slide="a", source=name),)) for name in named
    ]
    before = [Ledger(store).identify(request) for request in requests]
    plan = IngestStage().plan(
        requests[0], Context(store, threads=1, device="cpu", report=lambda *_: None)
    )
    assert [shard.id for phase in plan.phases for shard in phase] == ["a"]
    chunk = next(each for each in path.rglob("*") if each.is_file() and "json" not in each.name)
    chunk.write_bytes(chunk.read_bytes() + b"0")
    upload()
    after = [Ledger(store).identify(request) for request in requests]
    assert not set(before) & set(after)


def test_a_damaged_chunk_costs_its_place(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    path = write_zarr(tmp_path / "a.zarr", IMAGE, (1, 1), axes="cyx", levels=1)
    (path / "0/c/0/1/2").write_bytes(b"nothing of Zstandard")
    with Slide.open(path) as slide:
        with pytest.raises(DamagedError, match=r"a\.zarr cannot be read at"):
            slide.read(256, 128, (64, 64), 1.0)
        assert np.array_equal(slide.read(0, 0, (128, 128), 1.0), IMAGE[:128, :128])


# --- OME-Zarr in a cohort ---------------------------------------------------------------------


def ingest(store: DirectoryStore, sources: Sources) -> JobStatus:
    request = IngestRequest(
        cohort="c",
        slides=sources.slides,
        patches=PatchGrid(size=64, mpp=1.0, stride=64),
        regions=RegionRule(size=128, mpp=1.0),
        classes=Classes.of("stroma", "tumor"),
    )
    ledger = Ledger(store)
    return run_job(ledger, IngestStage(), ledger.submit(request, replace=True))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_zarr_folder_is_one_slide_of_a_cohort(tmp_path: Path, in_place: bool) -> None:
    pytest.importorskip("zarr")
    store, folder = DirectoryStore(tmp_path / "store"), tmp_path / "in"
    path = write_zarr(folder / "deep/s 1.ome.zarr", picture(noise=4), (1, 1))
    (path / ".DS_Store").write_bytes(b"x")
    shutil.copytree(path, folder / "again.ome.zarr")
    write_outlines(folder / "deep/s 1.geojson", 1, 1)
    found = find_slides([folder])
    sources = slide_sources(store, found, in_place=in_place)
    (item,) = sources.slides
    assert any("has the same content" in note for note in sources.notes)
    assert item.labels is not None
    status = ingest(store, sources)
    assert status.state == "done", status.failed
    with LabelMap(store.local(label_map_key(item.folder, "c"))) as labels:
        assert np.bincount(labels.whole().ravel(), minlength=3)[1:] == pytest.approx(
            [192 * 384] * 2, rel=0.01
        )
    cohort = store.get_model(cohort_key("c"), CohortRecord)
    with open_slide(store, cohort, item.slide) as (slide, record):
        assert slide.vendor == "ome-zarr"
        copied = f"sources/{str(item.sha256)[:32]}/s 1.ome.zarr"
        assert record.source == (str(path) if in_place else copied)
    stored = list(store.list("sources/"))
    assert bool(stored) is not in_place
    assert not [key for key in stored if "DS_Store" in key]

    place = path if in_place else store.root / item.source
    chunk = next(file for file in sorted(place.rglob("*")) if file.is_file() and file.name == "1")
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    with (
        pytest.raises(InputError, match=r"s 1\.ome\.zarr has changed"),
        open_slide(store, cohort, item.slide),
    ):
        pass


def test_the_store_forgets_a_zarr_slide_whole(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    store = DirectoryStore(tmp_path / "store")
    path = write_zarr(tmp_path / "a.zarr", picture(noise=4), (1, 1), levels=1)
    sources = slide_sources(store, find_slides([path]), use_labels=False)
    assert sources.slides[0].slide == "a"
    assert ingest(store, sources).state == "done"
    remove(store, "cohorts", "c")
    remove(store, "slides", sources.slides[0].folder)
    assert list(store.list("sources/")) == []


def test_zarr_folders_that_cannot_be_kept_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("linked", "many", "good"):
        group = tmp_path / f"{name}.zarr" / "0"
        group.mkdir(parents=True)
        (group.parent / "zarr.json").write_text("{}")
    (tmp_path / "linked.zarr/0/0").symlink_to("/etc/hostname")
    for number in range(3):
        (tmp_path / f"many.zarr/0/{number}").write_bytes(b"x")
    monkeypatch.setattr(slide_finding, "MAX_FILES", 3)
    (tmp_path / "empty.zarr").mkdir()
    found = find_slides([tmp_path])
    assert [entry.path.name for entry in found.slides] == ["good.zarr"]
    reasons = {Path(item.path).name: item.reason for item in found.refused}
    assert "has a link or special file in it (0/0)" in reasons["linked.zarr"]
    assert "has 4 files; a slide may have 3" in reasons["many.zarr"]
    assert "is a folder without slides" in reasons["empty.zarr"]


# --- CZI --------------------------------------------------------------------------------------


def test_czi_states_its_size_and_has_its_levels(tmp_path: Path) -> None:
    pytest.importorskip("pylibCZIrw")
    image = picture(noise=20)
    path = write_czi(tmp_path / "切片 a.czi", image, (0.25, 0.5), corner=(1000, -300))
    with Slide.open(path) as slide:
        assert (slide.vendor, slide.width, slide.height) == ("zeiss", 512, 512)
        assert (slide.levels, slide.mpp, slide.mpp_y) == (2, 0.25, 0.5)
        for level, expected in enumerate(halves(image, 2)):
            assert np.array_equal(pixels(slide, level), expected)
        assert [slide._level(mpp) for mpp in (0.5, 0.99, 1.0, 4.0)] == [0, 0, 1, 1]
    with Slide.open(path, 1.0) as slide:
        window = slide.read(500, 505, (20, 15), 1.0)
        assert np.array_equal(window[:7, :12], image[505:, 500:])
        assert (window[7:] == 255).all()


def test_fluorescence_and_damaged_czi_are_refused(tmp_path: Path) -> None:
    create = pytest.importorskip("pylibCZIrw.czi").create_czi
    with create(str(tmp_path / "a.czi")) as file:
        for channel in range(2):
            file.write(IMAGE[..., channel : channel + 1].copy(), plane={"C": channel})
    with pytest.raises(InputError, match="2 channels of Gray8, Gray8, so it is fluorescence"):
        Slide.open(tmp_path / "a.czi", 0.5)
    with create(str(tmp_path / "b.czi")) as file:
        for plane in range(2):
            file.write(IMAGE, plane={"Z": plane})
    with pytest.raises(InputError, match="2 planes of focus"):
        Slide.open(tmp_path / "b.czi", 0.5)
    data = (tmp_path / "b.czi").read_bytes()
    (tmp_path / "c.czi").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"c\.czi cannot be opened as CZI.*damaged"):
        Slide.open(tmp_path / "c.czi", 0.5)


# --- iSyntax, and extras that are absent ------------------------------------------------------


def test_a_damaged_isyntax_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("isyntax")
    (tmp_path / "a.isyntax").write_bytes(b"<DataObject></DataObject>\x04" + bytes(1000))
    with pytest.raises(InputError, match=r"a\.isyntax cannot be opened as iSyntax"):
        Slide.open(tmp_path / "a.isyntax")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.zarr", "zarr", "zarr"),
        ("a.isyntax", "isyntax", "isyntax"),
        ("a.czi", "pylibCZIrw.czi", "czi"),
    ],
)
def test_an_extra_that_is_absent_is_named(
    tmp_path: Path, name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / name
    if name == "a.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        path.write_bytes(b"x")
    if name == "a.czi":
        monkeypatch.setattr(slide_files.openslide.OpenSlide, "detect_format", lambda _: "zeiss")
    with pytest.raises(InputError) as caught:
        slide_files.open_source(path)  # in this process, whose modules are patched
    assert f"pip install 'heterotissue[{extra}]'" in str(caught.value)
    assert "\n" not in str(caught.value)
