"""Ingest: annotations, tissue, patches, regions, and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from pydantic import ValidationError

from heterotissue.labels import write_labels as write_labels_of
from services.ingest.annotations import formats, outlines, qupath
from services.ingest.annotations.outlines import SlideGeometry
from services.ingest.annotations.writing import write_annotation
from services.ingest.stage import IngestStage
from shared.contracts.base import Classes
from shared.contracts.ingest import (
    CohortRecord,
    IngestRequest,
    PatchGrid,
    SlideRecord,
    SlideSource,
)
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.imaging.label_map import LabelMap
from shared.imaging.masks import open_mask
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.slide import Slide
from shared.jobs import JobStatus, Ledger, run_job
from shared.jobs import stage as jobs
from shared.storage import DirectoryStore
from tests.formats.drawing import draw

CLASSES = Classes.of("stroma", "tumor")
SIDE = 512
GRID = PatchGrid(size=64, mpp=1.0, stride=64)
RULE = RegionRule(size=128, mpp=1.0)


def write_slide(folder: Path, name: str = "slide", mpp: float | None = 1.0) -> Path:
    """A pink slide with a violet half, on glass, as a tiled TIFF."""
    rng = np.random.default_rng(0)
    image = np.full((SIDE, SIDE, 3), 245, np.uint8)
    image[64:448, 64:448] = (225, 150, 190)
    image[64:448, 256:448] = (120, 70, 150)
    image = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    path = folder / f"{name}.tiff"
    resolution: dict[str, Any] = {}
    if mpp:
        resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", **resolution)
    return path


def truth() -> np.ndarray[Any, Any]:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[64:448, 64:256] = 1
    labels[64:448, 256:448] = 2
    labels[128:192, 96:160] = 0  # a hole
    return labels


def write_labels(folder: Path) -> dict[str, Path]:
    """The same truth as GeoJSON, ASAP XML and indexed images."""
    stroma = [[64, 64], [256, 64], [256, 448], [64, 448], [64, 64]]
    hole = [[96, 128], [160, 128], [160, 192], [96, 192], [96, 128]]
    tumor = [[256, 64], [448, 64], [448, 448], [256, 448], [256, 64]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"classification": {"name": name}},
        }
        for name, rings in (("Stroma", [stroma, hole]), ("TUMOR", [tumor]))
    ]
    paths = {key: folder / f"labels.{key}" for key in ("geojson", "xml", "png", "npy", "tif")}
    paths["geojson"].write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    annotations = ""
    for name, ring in (("stroma", stroma), ("background", hole), ("tumor", tumor)):
        points = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(ring[:-1])
        )
        annotations += (
            f'<Annotation Name="a" Type="Polygon" PartOfGroup="{name}">'
            f"<Coordinates>{points}</Coordinates></Annotation>"
        )
    paths["xml"].write_text(
        f"<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>"
    )
    labels = truth()
    Image.fromarray(labels).save(paths["png"])
    np.save(paths["npy"], labels)
    tifffile.imwrite(paths["tif"], labels[::4, ::4])
    return paths


def ingest(store: DirectoryStore, *slides: SlideSource, **fields: Any) -> JobStatus:
    fields = {"classes": CLASSES, "patches": GRID, "regions": RULE} | fields
    request = IngestRequest(cohort="c", slides=slides, **fields)
    ledger = Ledger(store)
    return run_job(ledger, IngestStage(), ledger.submit(request))


def source(path: Path, labels: Path | None = None, **fields: Any) -> SlideSource:
    return SlideSource(
        slide="s", source=str(path), labels=str(labels) if labels else None, **fields
    )


@pytest.mark.parametrize("kind", ["geojson", "xml", "png", "npy", "tif"])
def test_every_label_format_gives_the_same_map(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((qupath, "json"), (outlines, "parse"), (formats, "iterparse")):
        monkeypatch.setattr(module, name, None)  # the sandbox alone parses
    store = DirectoryStore(tmp_path / "store")
    path, labels = write_slide(tmp_path), write_labels(tmp_path)
    status = ingest(store, source(path, labels[kind]))
    assert status.state == "done", status.failed
    with LabelMap(store.local("slides/s/labels/c.tif")) as opened:
        assert opened.mpp == pytest.approx(1.0)
        assert np.array_equal(opened.whole(), truth())
        window = opened.read(250, 100, (8, 4), 2.0, (1.0, 1.0))
        assert np.array_equal(window, truth()[101:109:2, 251:267:2])


def test_labels_are_written_for_other_programmes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = write_slide(tmp_path)
    assert ingest(store, source(path, write_labels(tmp_path)["geojson"])).state == "done"
    write_labels_of(store, "s", "c", "imagescope", tmp_path / "s.xml")
    again = DirectoryStore(tmp_path / "again")
    assert ingest(again, source(path, tmp_path / "s.xml")).state == "done"
    with LabelMap(again.local("slides/s/labels/c.tif")) as opened:
        assert np.array_equal(opened.whole(), truth())
    with pytest.raises(InputError, match=r"s\.xml exists already"):
        write_labels_of(store, "s", "c", "imagescope", tmp_path / "s.xml")
    with pytest.raises(InputError, match="has no slide 't'"):
        write_labels_of(store, "t", "c", "imagescope", tmp_path / "t.xml")


def test_records_patches_and_regions_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To look for a GPU loads torch, which takes seconds and 0.9 GiB.
    monkeypatch.setattr(jobs, "choose_device", lambda _: pytest.fail("ingest needs no device"))
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, source(write_slide(tmp_path), write_labels(tmp_path)["geojson"]))
    assert status.state == "done", status.failed
    record = store.get_model("slides/s/slide.json", SlideRecord)
    assert (record.width, record.mpp, record.stain) == (SIDE, pytest.approx(1.0), "h&e")
    assert 0.5 < record.tissue_fraction < 0.6
    cohort = store.get_model("cohorts/c.json", CohortRecord)
    assert cohort.splits == {"s": "train"}
    table = pq.read_table(store.local("patches/c/s.parquet"))
    assert table.num_rows == 36  # 6 × 6 patches of 64 px lie in the tissue
    rows = {(row["x"], row["y"]): row["fractions"] for row in table.to_pylist()}
    assert rows[64, 64] == pytest.approx([0, 1, 0])
    assert rows[384, 64] == pytest.approx([0, 0, 1])
    regions = load_region_set(store, "c")
    kept = list(RegionIndex(store, regions, "train"))
    assert kept
    for region in kept:
        shares = np.bincount(region.labels.ravel(), minlength=3)[1:]
        assert (shares / shares.sum()).min() >= 0.2
        violet = region.labels == 2
        assert region.image[violet].mean() < region.image[region.labels == 1].mean() - 40


def test_the_result_says_what_labels_lack(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = write_slide(tmp_path)
    ring = [[64, 64], [256, 64], [256, 256], [64, 256], [64, 64]]
    inner = [[64, 64], [192, 64], [192, 192], [64, 192], [64, 64]]
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [part]}, "properties": {"label": name}}
        for name, part in (("stroma", ring), ("background", inner), (None, inner))
    ]
    labels = tmp_path / "labels.geojson"
    labels.write_text(json.dumps(features))
    other = SlideSource(slide="bare", source=str(path))
    status = ingest(store, source(path, labels), other)
    assert status.state == "done", status.failed
    result = status.result or {}
    assert result["unlabelled"] == ["bare"]
    assert result["classes never seen"] == ["tumor"]
    assert result["objects left out"] == {"without a class": 1}
    assert "overpainted slides" not in result  # background is no class that covers another
    assert result["regions"] == 0
    why = result["no regions"][0]
    assert "no window of 128 px at 1 µm/px (128 µm wide) has at least 2 classes" in why
    assert "hold 20 to 80 %" in why
    assert "'Training regions' in docs/slides.md" in why
    halo = tmp_path / "labels.annotations"
    drawn = [("stroma", ring), ("stroma", inner[:-1]), ("tumor", inner), ("tumor", ring[:-1])]
    layers = "".join(
        f'<Annotation Name="{name}"><Regions><Region Type="Polygon" HasEndcaps="0"><Vertices>'
        + "".join(f'<V X="{x}" Y="{y}"/>' for x, y in part)
        + "</Vertices></Region></Regions></Annotation>"
        for name, part in drawn
    )
    halo.write_text(f"<Annotations>{layers}</Annotations>")
    result = ingest(DirectoryStore(tmp_path / "other"), source(path, halo)).result or {}
    assert result["overpainted slides"] == {"s": "31%"}
    assert result["unclosed outlines taken for lines"] == {"s": 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_names": {"_0": "tumour"}}, "label_names maps '_0' to 'tumour'"),
        ({"label_order": ("stroma", "fat")}, "label_order names 'fat', not"),
        ({"label_names": {"a_1": "tumor", "A-1": "stroma"}}, "in this or another spelling, to two"),
        ({"classes": Classes.of("tumor", "Ignore*")}, r"'Ignore\*' can be no classes"),
    ],
)
def test_names_are_checked_when_the_request_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IngestRequest(
            cohort="c",
            slides=(SlideSource(slide="s", source="s"),),
            **{"classes": CLASSES} | fields,
        )


def test_the_place_of_a_real_ndpi_slide_on_the_glass(real_data: Path, tmp_path: Path) -> None:
    with Slide.open(real_data / "wsi/fluorescence.ndpi") as opened:
        slide = SlideGeometry.of(opened)
    assert slide.offset_nm is not None
    labels = np.zeros((slide.height // 8, slide.width // 8), np.uint8)
    labels[100:300, 50:250] = 1
    mpp = slide.mpp * 8
    write_annotation(tmp_path / "a.ndpa", "ndpa", labels, mpp, CLASSES, slide)
    again, _ = draw(tmp_path / "a.ndpa", CLASSES, slide=slide, mpp=mpp)
    assert np.array_equal(again, labels)


def test_a_slide_without_resolution_asks_for_mpp(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = write_slide(tmp_path, "müde Probe", mpp=None)
    status = ingest(store, source(path))
    assert "müde Probe.tiff states no resolution: pass --mpp" in status.failed["s"]
    assert ingest(store, source(path, mpp=1.0)).state == "done"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<ASAP_Annotations><Anno", "labels.xml is not well-formed XML"),
        (b"<html/>", "labels.xml has the root <html>"),
        (b'{"features": [', "labels.geojson is not JSON"),
        (b'{"features": [{"geometry": {"type": "Polygon", "coordinates": [[1]]}}]}', "feature 0"),
    ],
)
def test_malformed_annotations_name_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    labels = tmp_path / ("labels.xml" if content.startswith(b"<") else "labels.geojson")
    labels.write_bytes(content)
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, source(write_slide(tmp_path), labels))
    assert status.state == "failed"
    assert message in status.failed["s"]
    assert not store.exists("slides/s/slide.json")
    assert not store.exists("slides/s/labels/c.tif")


def test_labels_outside_the_classes_are_listed(tmp_path: Path) -> None:
    labels = tmp_path / "labels.png"
    Image.fromarray(truth() * 3).save(labels)
    store = DirectoryStore(tmp_path / "store")
    path = write_slide(tmp_path)
    status = ingest(store, source(path, labels))
    assert "labels.png has labels outside the classes" in status.failed["s"]
    assert "[3, 6]" in status.failed["s"]
    names = {"3": "stroma", "6": "tumor"}
    other = ingest(store, source(path, labels, labels_sha256="0" * 64), label_names=names)
    assert "annotation of 's': labels.png has changed" in other.failed["s"]
    assert ingest(store, source(path, labels), label_names=names).state == "done"


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    labels = tmp_path / "wrong.png"
    Image.fromarray(truth()[:300]).save(labels)
    status = ingest(DirectoryStore(tmp_path / "store"), source(write_slide(tmp_path), labels))
    assert "wrong.png is 512×300 px, which does not fit" in status.failed["s"]


def test_a_truncated_slide_is_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path)
    path.write_bytes(path.read_bytes()[:200_000])
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, source(path))
    assert status.state == "failed"
    assert "slide.tiff" in status.failed["s"]
    assert list(store.list("slides/")) == []


def test_good_slides_go_on_where_others_fail(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"no slide")
    good = SlideSource(slide="good", source=str(write_slide(tmp_path)))
    status = ingest(store, good, SlideSource(slide="bad", source=str(bad)))
    assert status.state == "partial"
    assert set(status.failed) == {"bad"}
    assert set(store.get_model("cohorts/c.json", CohortRecord).splits) == {"good"}


def test_panda_masks_have_names_of_their_own(tmp_path: Path) -> None:
    mask = tmp_path / "mask.tif"
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32, 0] = 1
    image[:, 32:, 0] = 4
    tifffile.imwrite(mask, image, photometric="rgb")
    classes = Classes.of("stroma", "benign", "Gleason 3", "Gleason 4", "Gleason 5")
    slide = SlideGeometry(64, 64, 1.0, 1.0)
    labels, _ = draw(mask, classes, slide=slide, label_format="panda-radboud")
    assert np.unique(labels).tolist() == [1, 4]
    two = Classes.of("benign", "cancer")
    with pytest.raises(InputError, match="4"):
        draw(mask, two, slide=slide, label_format="panda-karolinska")


def test_geojson_with_a_third_coordinate(real_data: Path) -> None:
    outlines = qupath.read(
        real_data / "annotations/polygons_3d.geojson", SlideGeometry(1, 1, 1.0, 1.0)
    ).outlines
    assert outlines
    assert all(outline.area.area > 0 for outline in outlines)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("TCGA-CR-7395-01A-01-TS1.svs", "states no resolution: pass --mpp"),
        ("camelyon_dicom_jpeg.dcm", "states 28.97 µm per pixel, too coarse"),
        ("fluorescence.ndpi", "does not look like H&E"),
        ("broken/histolab_broken.svs", "cannot be opened"),
        ("broken/osp_unopenable.tiff", "compression 52479"),
        ("broken/osp_unreadable.svs", "smaller than one patch"),
        ("broken/osp_small.svs", "smaller than one patch"),
        ("broken/pathml_small_dicom.dcm", "cannot be opened"),
    ],
)
def test_real_slides_that_cannot_be_used(
    real_data: Path, tmp_path: Path, file: str, message: str
) -> None:
    path = real_data / "wsi" / file
    status = ingest(DirectoryStore(tmp_path / "store"), source(path), classes=None)
    assert message in status.failed["s"]
    assert path.name in status.failed["s"]


def test_a_real_aperio_slide(real_data: Path, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, source(real_data / "wsi/CMU-1-Small-Region.svs"), classes=None)
    assert status.state == "done", status.failed
    record = store.get_model("slides/s/slide.json", SlideRecord)
    assert (record.vendor, record.stain) == ("aperio", "h&e")
    assert record.mpp == pytest.approx(0.499)
    assert record.tissue_fraction > 0.25


def test_real_mosaic_mask_geojson_and_xml_agree(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "wsi/mosaic"
    classes = Classes.of(
        "Normal", "Polyp", "Low-grade IN", "High-grade IN", "Serrated adenoma", "Adenocarcinoma"
    )
    with tifffile.TiffFile(folder / "ebhi_mosaic_test.tiff") as file:
        height, width = file.pages[0].shape[:2]  # type: ignore[union-attr]
    maps = {}
    slide = SlideGeometry(width, height, 1.0, 1.0)
    for suffix in ("_mask.tiff", ".geojson", ".xml"):
        maps[suffix], _ = draw(folder / f"ebhi_mosaic_test{suffix}", classes, slide=slide)
    truth = maps["_mask.tiff"]
    assert (truth == maps[".geojson"]).mean() >= 0.999
    holes = (truth == 0) & (maps[".xml"] > 0)
    assert (truth == maps[".xml"])[~holes].mean() >= 0.999


def test_a_label_image_shows_no_pixel_of_another_file(tmp_path: Path) -> None:
    other, path = tmp_path / "other.tif", tmp_path / "labels.tif"
    tifffile.imwrite(other, np.full((16, 16), 7, np.uint8))
    described = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="16" SizeY="16" SizeC="1"'
        ' SizeZ="1" SizeT="1"><TiffData IFD="0"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
        "</Pixels></Image></OME>"
    ).format(other, "11111111-2222-3333-4444-555555555555")
    tifffile.imwrite(path, np.full((16, 16), 1, np.uint8), description=described, metadata=None)
    assert open_mask(path).rows(0, 16).tolist() == np.full((16, 16), 1).tolist()
