"""Labels that lie on their slide and its tissue, and labels that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.ingest.annotations.outlines import SlideGeometry
from shared.contracts.base import Classes
from shared.errors import InputError
from tests.formats.drawing import HEIGHT, WIDTH, draw, painted
from tests.formats.outline_files import Point, geojson, polygon, square


def halves() -> np.ndarray[Any, Any]:
    tissue = np.zeros((40, 50), np.bool_)
    tissue[:, 25:] = True
    return tissue


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (square(5_000, 5_000, 100), r"0% .*x 5000 to 5100.*500×400"),
        (square(-200, -200, 100), "0% of the labelled area"),
        (square(0.1, 0.1, 0.5), "between 0 and 1"),
        ([[x * 8, y * 8] for x, y in square(100, 100, 200)], "at another level"),
        (square(400, 300, 200), "of the labelled area of a.geojson"),
        (square(0, 0, 100), "0.0% .* lies on tissue, less than 10%"),
    ],
)
def test_misplaced_labels_are_refused(tmp_path: Path, points: list[Point], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(geojson(tmp_path, polygon(points)), tissue=halves())


def test_the_least_share_on_tissue_may_be_set(tmp_path: Path) -> None:
    path = geojson(tmp_path, polygon(square(200, 100, 100)))
    assert draw(path, tissue=halves())[1]["on_tissue"] == 0.5
    with pytest.raises(InputError, match="less than 60%"):
        draw(path, tissue=halves(), labels_on_tissue=0.6)
    glass = geojson(tmp_path, polygon(square(0, 0, 100)))
    assert painted(glass, tissue=halves(), labels_on_tissue=0) == [10_000, 0]


CROPPED = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0, bounds=(250, 100, 200, 200))


@pytest.mark.parametrize(("x", "y", "origin"), [(50, 50, "bounds"), (300, 150, "slide")])
def test_coordinates_of_the_scanned_area_are_told_by_tissue(
    tmp_path: Path, x: float, y: float, origin: str
) -> None:
    path = geojson(tmp_path, polygon(square(x, y, 100)))
    labels, record = draw(path, slide=CROPPED, tissue=halves())
    assert (labels[150:250, 300:400] == 1).all()
    assert (labels == 1).sum() == 10_000
    assert record["origin"] == origin


def test_an_origin_that_tissue_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    path = geojson(tmp_path, polygon(square(50, 50, 100)))
    with pytest.raises(InputError, match="labels_origin"):
        draw(path, slide=CROPPED)
    assert draw(path, slide=CROPPED, labels_origin="slide")[0][60, 60] == 1
    assert draw(path, slide=CROPPED, labels_origin="bounds")[0][160, 310] == 1


FINE = SlideGeometry(WIDTH, HEIGHT, 0.5, 0.4)
IN_UM = [(x * 0.5, y * 0.4) for x, y in square(300, 100, 100)]


def test_coordinates_in_um_are_told_by_tissue(tmp_path: Path) -> None:
    path = geojson(tmp_path, polygon(IN_UM))
    with pytest.raises(
        InputError, match=r"0% .* in level-0 pixels. If they are µm, 100% .*to um, or"
    ):
        draw(path, slide=FINE, tissue=halves())
    labels, _ = draw(path, slide=FINE, tissue=halves(), labels_unit="um")
    assert (labels.sum(), labels[40:80, 150:200].all()) == (2_000, True)
    assert painted(path, slide=FINE, tissue=halves(), labels_unit="px", labels_on_tissue=0)[0]
    coarse = SlideGeometry(WIDTH, HEIGHT, 2.0, 2.0)
    wide = geojson(tmp_path, polygon([(x * 2, y * 2) for x, y in square(300, 100, 100)]))
    with pytest.raises(InputError, match=r"other units\? If they are µm, 100% of it does: set"):
        draw(wide, slide=coarse, tissue=halves())
    assert draw(wide, slide=coarse, tissue=halves(), labels_unit="um")[1]["on_tissue"] == 1


@pytest.mark.parametrize(
    ("points", "meaning"),
    [
        ([(y, x) for x, y in square(300, 100, 100)], "y and x"),
        ([(x / 4, y / 4) for x, y in square(300, 100, 100)], "pixels of level 1"),
    ],
)
def test_coordinates_of_another_meaning_are_told_by_tissue(
    tmp_path: Path, points: list[Point], meaning: str
) -> None:
    slide = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0, downsamples=(1.0, 4.0))
    path = geojson(tmp_path, polygon(points))
    with pytest.raises(InputError, match=rf"If they are {meaning}, 100% of it does: export level"):
        draw(path, slide=slide, tissue=halves())
    assert painted(path, slide=slide, tissue=halves(), labels_unit="px", labels_on_tissue=0)[0]


def test_a_slide_without_labels_is_fine_where_classes_are_exhaustive(tmp_path: Path) -> None:
    classes = Classes.of("tumor", exhaustive=True)
    assert draw(geojson(tmp_path), classes)[1]["painted"] == {}
