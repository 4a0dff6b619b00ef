"""Label maps written in every format, and read again."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shapely.geometry import box

from services.ingest.annotations.ndpa import read as read_ndpa
from services.ingest.annotations.ndpa import write as write_ndpa
from services.ingest.annotations.outlines import SlideGeometry, read_xml
from services.ingest.annotations.writing import write_annotation
from shared.contracts.annotations import FORMATS, LabelFormat
from shared.contracts.base import Classes
from shared.errors import InputError
from shared.imaging.slide import Slide
from tests.formats.drawing import draw
from tests.formats.scanner_files import write_vms
from tests.formats.slide_files import picture

CLASSES = Classes.of("tumor", "stroma", "Fat tissue & <glands>")
OFFSET = (1_234_567.0, -765_432.0)

FILES: list[tuple[LabelFormat, str]] = [
    (kind.name, suffix) for kind in FORMATS if kind.written for suffix in kind.suffixes
]


def blobs(height: int, width: int) -> NDArray[np.uint8]:
    """Draw areas with holes, islands in them, single pixels, and areas along the border."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for _ in range(60):
        y, x, radius = rng.integers(height), rng.integers(width), rng.integers(2, 40)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        labels[inside] = rng.integers(4)
    labels[rng.random(labels.shape) < 0.01] = 2
    return labels


@pytest.mark.parametrize(("kind", "suffix"), FILES)
@pytest.mark.parametrize(
    "slide",
    [
        SlideGeometry(300, 200, 1.0, 1.0, offset_nm=OFFSET),
        SlideGeometry(1200, 400, 0.25, 0.5, offset_nm=OFFSET),  # pixels that are not square
        SlideGeometry(300, 200, 1.0, 1.0, offset_nm=OFFSET, stated_mpp=(0.5, 0.4)),
    ],
)
def test_every_format_gives_the_same_label_map(
    kind: LabelFormat, suffix: str, slide: SlideGeometry, tmp_path: Path
) -> None:
    labels = blobs(200, 300)
    path = tmp_path / f"a{suffix}"
    write_annotation(path, kind, labels, 1.0, CLASSES, slide)
    again, record = draw(path, CLASSES, slide=slide, label_format=kind)
    assert np.array_equal(again, labels)
    assert record["skipped"] == {}
    assert record["mpp"] is None


@pytest.mark.parametrize("mpp", [None, 0.3])
def test_nanometres_are_the_scanners_own_whatever_resolution_is_given(
    mpp: float | None, tmp_path: Path
) -> None:
    path = write_vms(tmp_path / "a.vms", picture(), (0.25, 0.5))
    path.write_text(path.read_text().replace("FromSlideCentre=0", "FromSlideCentre=1000000"))
    with Slide.open(path, mpp) as opened:
        slide = SlideGeometry.of(opened)
    area = box(100, 60, 228, 188)
    ndpa = tmp_path / "a.ndpa"
    write_ndpa(ndpa, [(area, CLASSES.items[1])], slide)
    points = read_xml(ndpa, "annotations").iter("point")
    corners = {tuple(int(str(point.findtext(axis))) for axis in "xy") for point in points}
    xs = [1_000_000 + 250 * (x - 256) for x in (100, 228)]
    ys = [1_000_000 + 500 * (y - 256) for y in (60, 188)]
    assert corners == set(product(xs, ys))
    assert read_ndpa(ndpa, slide).outlines[0].area.equals(area)


@pytest.mark.parametrize(("kind", "suffix"), FILES)
def test_a_map_whose_pixels_do_not_fit_the_slide(
    kind: LabelFormat, suffix: str, tmp_path: Path
) -> None:
    slide = SlideGeometry(1009, 673, 0.2527, 0.2527, offset_nm=OFFSET)
    labels = blobs(340, 510)
    path = tmp_path / f"a{suffix}"
    write_annotation(path, kind, labels, 0.5, CLASSES, slide)
    again, _ = draw(path, CLASSES, slide=slide, mpp=0.5)
    assert again.shape == labels.shape
    assert (again == labels).mean() >= (0.97 if kind == "mask" else 0.999)


def test_coordinates_of_the_scanned_area(tmp_path: Path) -> None:
    slide = SlideGeometry(300, 200, 1.0, 1.0, bounds=(100, 50, 150, 100))
    labels = np.zeros((200, 300), np.uint8)
    labels[60:140, 110:240] = 1
    path = tmp_path / "a.geojson"
    write_annotation(path, "qupath", labels, 1.0, CLASSES, slide, "bounds")
    tissue: Any = labels[::5, ::5] > 0
    again, record = draw(path, CLASSES, slide=slide, tissue=tissue)
    assert np.array_equal(again, labels)
    assert record["origin"] == "bounds"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("qupath", "a.xml", "ends in .geojson"),
        ("panda-radboud", "a.tiff", "is not written"),
        ("ndpa", "a.ndpa", "only NDPI slides"),
    ],
)
def test_what_cannot_be_written(kind: LabelFormat, name: str, message: str, tmp_path: Path) -> None:
    labels = np.ones((200, 300), np.uint8)
    slide = SlideGeometry(300, 200, 1.0, 1.0)
    with pytest.raises(InputError, match=message):
        write_annotation(tmp_path / name, kind, labels, 1.0, CLASSES, slide)
