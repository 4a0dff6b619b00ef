"""QuPath GeoJSON, as QuPath writes it: the painted pixels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.contracts.base import Classes
from shared.errors import InputError
from tests.formats.drawing import draw, painted
from tests.formats.outline_files import Point, feature, geojson, polygon, square, text

BIG = polygon(square(100, 100, 200))  # 40,000 px


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.geojson", json.dumps({"type": "FeatureCollection", "features": [BIG]}).encode()),
        ("a.GEOJSON", json.dumps([BIG]).encode()),
        ("a.json", json.dumps(BIG).encode()),
        ("a.json", json.dumps([BIG | {"id": "PathAnnotationObject"}]).encode()),
        ("a.geojson", b"\xef\xbb\xbf" + json.dumps([BIG]).encode()),
        ("a.geojson", json.dumps([BIG]).encode("utf-16")),
        ("a.geojson.gz", gzip.compress(json.dumps([BIG]).encode(), mtime=0)),
        ("a.geojson", gzip.compress(json.dumps([BIG]).encode(), mtime=0)),
    ],
)
def test_every_wrapping_of_geojson(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert painted(path) == [40_000, 0]


def star(x: float, y: float, radius: float) -> list[Point]:
    angles = np.arange(6) * 4 * np.pi / 5
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).tolist()


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        ({"type": "Polygon", "coordinates": [square(100, 100, 200), square(150, 150, 50)]}, 37_500),
        (
            {
                "type": "MultiPolygon",
                "coordinates": [[square(100, 100, 100)], [square(150, 150, 100)]],
            },
            17_500,
        ),
        (
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "Polygon", "coordinates": [square(100, 100, 100)]},
                    {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
                    {
                        "type": "GeometryCollection",
                        "geometries": [
                            {"type": "MultiPolygon", "coordinates": [[square(300, 100, 100)]]}
                        ],
                    },
                ],
            },
            20_000,
        ),
        ({"type": "Polygon", "coordinates": [[[x, y, 7] for x, y in square(0, 0, 100)]]}, 10_000),
        ({"type": "Polygon", "coordinates": [square(0, 0, 100)[:-1]]}, 10_000),  # not closed
        # two loops of one stroke, and their overlap of 50 × 100 px
        (
            {
                "type": "Polygon",
                "coordinates": [
                    [
                        [100, 100], [200, 100], [200, 200], [100, 200], [100, 100],
                        [150, 100], [250, 100], [250, 200], [150, 200], [150, 100], [100, 100],
                    ]
                ],
            },
            15_000,
        ),
    ],
)  # fmt: skip
def test_areas_of_geometries(tmp_path: Path, geometry: dict[str, Any], area: int) -> None:
    assert painted(geojson(tmp_path, feature(geometry))) == [area, 0]


def test_objects_within_others_are_read(tmp_path: Path) -> None:
    """QuPath's whole hierarchy: a root without a class, and annotations within an annotation."""
    inner = polygon(square(120, 120, 50), name="stroma", objectType="annotation")
    outer = polygon(square(100, 100, 100), objectType="annotation", childObjects=[inner])
    whole = polygon(square(0, 0, 400), name=None, objectType="root", childObjects=[outer])
    labels, record = draw(geojson(tmp_path, whole))
    assert [(labels == label).sum() for label in (1, 2)] == [7_500, 2_500]
    assert record["skipped"] == {}


def test_json_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(InputError, match=r"\(its fields are images, annotations, categories\)"):
        draw(path)
    collection = {
        "type": "GeometryCollection",
        "geometries": [{"type": "Polygon", "coordinates": [square(0, 0, 10)]}],
    }
    path.write_text(json.dumps(collection))
    with pytest.raises(InputError, match="left out: 1 without a class"):
        draw(path)


def test_a_stroke_that_crosses_itself_is_filled(tmp_path: Path) -> None:
    labels, _ = draw(geojson(tmp_path, polygon(star(250, 200, 100))))
    assert labels[200, 250] == 1  # the middle, which an even-odd rule leaves out
    assert (labels == 1).sum() == pytest.approx(11_226, rel=0.01)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (polygon([]), "without an area"),
        (feature({"type": "Polygon", "coordinates": []}), "without an area"),
        (feature({"type": "MultiPolygon", "coordinates": []}), "without an area"),
        (feature({"type": "MultiPolygon", "coordinates": [[]]}), "without an area"),
        (feature({"type": "GeometryCollection", "geometries": []}), "without an area"),
        (polygon([[1, 1], [5, 5], [9, 9], [1, 1]]), "without an area"),
        (polygon([[1, 1], [1, 1]]), "without an area"),
        (feature(None), "without an area"),
        (feature({"type": "Point", "coordinates": [5, 5]}), "lines or points"),
        (feature({"type": "LineString", "coordinates": [[5, 5], [9, 9]]}), "lines or points"),
        (polygon(square(0, 0, 50), name=None), "without a class"),
        (polygon(square(0, 0, 50), name=None) | {"properties": None}, "without a class"),
        (polygon(square(0, 0, 50), name=None, classification=None), "without a class"),
        (feature(BIG["geometry"], None) | {"properties": {"name": "stroma"}}, "without a class"),
        (polygon(square(0, 0, 50), name="Ignore*"), "of a class that ends in *"),
        (polygon(square(0, 0, 50), name="Region*"), "of a class that ends in *"),
        (polygon(square(0, 0, 50), name="Cell", objectType="cell"), "detections"),
    ],
)
def test_what_has_no_label_is_counted(tmp_path: Path, extra: dict[str, Any], reason: str) -> None:
    good = polygon(square(100, 100, 200), objectType="annotation")
    labels, record = draw(geojson(tmp_path, extra, good))
    assert (labels == 1).sum() == 40_000
    assert record["skipped"] == {reason: 1}


def test_a_hole_outside_its_outline_paints_nothing(tmp_path: Path) -> None:
    rings = [square(100, 100, 100), square(300, 100, 50), square(150, 150, 100)]
    area = feature({"type": "Polygon", "coordinates": rings})
    labels, record = draw(geojson(tmp_path, area))
    assert (labels == 1).sum() == 100 * 100 - 50 * 50
    assert not labels[:, 200:].any()
    assert record["skipped"] == {"holes outside their outlines": 1}


@pytest.mark.parametrize(
    ("properties", "counts"),
    [
        ({"classification": {"names": ["Tumor", "Positive"]}}, [2_500, 0]),
        ({"classification": {"name": "Tumor: Positive: 3+"}}, [2_500, 0]),
        ({"classification": {"names": ["STROMA"], "colorRGB": -377282}}, [0, 2_500]),
        ({"classification": "stroma"}, [0, 2_500]),
        ({"classification": " Stroma "}, [0, 2_500]),
        ({"label": "stroma"}, [0, 2_500]),
    ],
)
def test_class_names_of_qupath(
    tmp_path: Path, properties: dict[str, Any], counts: list[int]
) -> None:
    drawn = polygon(square(0, 0, 50)) | {"properties": properties}
    assert painted(geojson(tmp_path, drawn)) == counts


def test_a_derived_class_may_be_a_class_of_its_own(tmp_path: Path) -> None:
    path = geojson(tmp_path, polygon(square(0, 0, 50), name="Tumor: Positive"))
    assert painted(path, Classes.of("tumor", "tumor: positive")) == [0, 2_500]
    assert painted(path, label_names={"tumor: positive": "stroma"}) == [0, 2_500]


def test_smaller_outlines_cover_larger_ones_and_it_is_said(tmp_path: Path) -> None:
    path = geojson(tmp_path, polygon(square(50, 50, 50)), polygon(square(0, 0, 200), name="stroma"))
    labels, record = draw(path)
    assert np.bincount(labels.ravel()).tolist()[1:] == [2_500, 37_500]
    assert record["painted"] == {"tumor": 2_500, "stroma": 37_500}
    assert record["overpainted_px"] == {"stroma": 2_500}
    assert record["overpainted"] == pytest.approx(2_500 / 42_500, abs=1e-4)
    _, record = draw(path, label_order=("tumor", "stroma"))
    assert record["painted"] == {"stroma": 40_000}
    assert record["overpainted_px"] == {"tumor": 2_500}


def one(coordinates: str) -> str:
    return (
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":' + coordinates + "},"
        '"properties":{"classification":{"name":"tumor"}}}'
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        (one("[" * 900 + "]" * 900), "feature 0"),
        (one('[[["1","2"],["3","4"],["5","6"]]]'), "text"),
        (one("[[[true,false],[true,true],[false,true]]]"), "True is no number"),
        (one("[[[0,0],[NaN,1],[1,1]]]"), "nan is no coordinate"),
        (one("[[[0,0],[1e999,1],[1,1]]]"), "inf is no coordinate"),
        (one("[[[0,0],[1e300,1],[1,1]]]"), "is no coordinate"),
        (one("[[[0],[1],[1]]]"), "feature 0 is malformed"),
        (one('"circle"'), "feature 0 is malformed"),
        ('{"features": 3}', "no GeoJSON features"),
        ("[1, 2]", "feature 0 is malformed"),
        ("{}", "its fields are none"),
        ("", "is empty"),
        ('{"features": [', r"is not JSON, or not all of it \(line 1, column 15\)"),
        (one("[[[0,0],[" + "9" * 5000 + ",1],[1,1]]]"), "thousands of digits"),
        (b"\xff\x00garbage", "is not"),
        ('"müde"'.encode("latin-1"), "not UTF-8"),
        (gzip.compress(b"[]", mtime=0)[:-4], "damaged or incomplete"),
        ('[{"geometry": {"type": "Circle", "coordinates": []}}]', "no type of GeoJSON"),
        ("[]", "labels not a pixel"),
        ('{"type": "FeatureCollection", "features": []}', "labels not a pixel"),
        (one("[]"), "1 without an area"),
    ],
)
def test_bad_geojson_is_refused_by_name(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        draw(text(tmp_path / "a.geojson", content))
    assert "a.geojson" in str(error.value)


def test_unknown_names_are_listed(tmp_path: Path) -> None:
    path = geojson(tmp_path, BIG, polygon(square(0, 0, 50), name="Necrosis"))
    with pytest.raises(InputError, match=r"a\.geojson .*: 'Necrosis'\. Add"):
        draw(path)
