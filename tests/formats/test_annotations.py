"""Annotations as QuPath, ASAP, ImageScope, HALO and NDP.view write them: the painted pixels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.ingest.annotations.outlines import SlideGeometry
from shared.contracts.base import Classes
from shared.errors import InputError
from tests.formats.drawing import HEIGHT, WIDTH, draw, painted

Point = list[float]


def square(x: float, y: float, side: float) -> list[Point]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry: Any, name: Any = "tumor", **properties: Any) -> dict[str, Any]:
    stated = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": geometry, "properties": stated | properties}


def polygon(*rings: list[Point], name: Any = "tumor", **properties: Any) -> dict[str, Any]:
    return feature({"type": "Polygon", "coordinates": list(rings)}, name, **properties)


def geojson(folder: Path, *features: Any) -> Path:
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


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
        ("a.geojson.gz", gzip.compress(json.dumps([BIG]).encode())),
        ("a.geojson", gzip.compress(json.dumps([BIG]).encode())),
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


@pytest.mark.parametrize(
    ("properties", "counts"),
    [
        ({"classification": {"names": ["Tumor", "Positive"]}}, [2_500, 0]),
        ({"classification": {"name": "Tumor: Positive: 3+"}}, [2_500, 0]),
        ({"classification": {"names": ["STROMA"], "colorRGB": -377282}}, [0, 2_500]),
        ({"classification": "stroma"}, [0, 2_500]),
        ({"label": "stroma"}, [0, 2_500]),
        ({"name": "stroma"}, [0, 2_500]),
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


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


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
        ("{}", "it has no 'geometry'"),
        ("", "is not JSON"),
        (b"\xff\x00garbage", "is not"),
        ('"müde"'.encode("latin-1"), "not UTF-8"),
        (gzip.compress(b"[]")[:-4], "is not JSON"),
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
    with pytest.raises(InputError, match=r"a\.geojson .* \['Necrosis'\]"):
        draw(path)


# ASAP


def annotation(points: list[Point], group: str = "tumor", kind: str = "Polygon") -> str:
    rows = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
    return (
        f'<Annotation Name="A" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{rows}</Coordinates></Annotation>"
    )


def asap(folder: Path, *annotations: str, groups: str = "") -> Path:
    return text(
        folder / "a.xml",
        f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{''.join(annotations)}"
        f"</Annotations><AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>",
    )


def ring(x: float, y: float, side: float) -> list[Point]:
    return square(x, y, side)[:-1]


def test_asap_types(tmp_path: Path) -> None:
    path = asap(
        tmp_path,
        annotation(ring(0, 0, 100)),
        annotation(ring(200, 0, 100), "stroma", "Rectangle"),
        annotation(ring(300, 200, 100), "stroma", "PointSet"),
        annotation([[5, 5]], "stroma", "Dot"),
        annotation([[5, 5], [90, 90]], "stroma", "Measurement"),
    )
    _, record = draw(path)
    assert record["painted"] == {"tumor": 10_000, "stroma": 10_000}
    assert record["skipped"] == {"lines or points": 3}


def test_a_spline_of_asap_is_a_curve_through_its_points(tmp_path: Path) -> None:
    angles = np.arange(24) * np.pi / 12
    points = np.stack([250 + 100 * np.cos(angles), 200 + 100 * np.sin(angles)], 1).tolist()
    circle = painted(asap(tmp_path, annotation(points, kind="Spline")))[0]
    assert circle == pytest.approx(np.pi * 100**2, rel=2e-3)
    assert painted(asap(tmp_path, annotation(points)))[0] < 0.99 * circle


@pytest.mark.parametrize(
    "coordinates",
    [
        '<C Order="0" X="100" Y="100"/><C Order="2" X="200" Y="200"/>'
        '<C Order="1" X="200" Y="100"/><C Order="3" X="100" Y="200"/>',
        '<C Order="0.0" X="100" Y="100"/><C Order="1.0" X="200" Y="100"/>'
        '<C Order="2.0" X="200" Y="200"/><C Order="3.0" X="100" Y="200"/>',
        '<C X="100" Y="100"/><C X="200" Y="100"/><C X="200" Y="200"/><C X="100" Y="200"/>',
        '<C Order="0" X="100,0" Y="100,0"/><C Order="1" X="200,0" Y="100"/>'
        '<C Order="2" X="200" Y="200,0"/><C Order="3" X="100" Y="200"/>',
    ],
)
def test_orders_and_commas_of_asap(tmp_path: Path, coordinates: str) -> None:
    item = annotation([]).replace(
        "<Coordinates></Coordinates>",
        f"<Coordinates>{coordinates.replace('<C ', '<Coordinate ')}</Coordinates>",
    )
    assert painted(asap(tmp_path, item)) == [10_000, 0]


def test_the_group_above_gives_the_class(tmp_path: Path) -> None:
    groups = (
        '<Group Name="deep" PartOfGroup="child"/><Group Name="child" PartOfGroup="Tumor"/>'
        '<Group Name="Tumor" PartOfGroup="None"/><Group Name="a" PartOfGroup="b"/>'
        '<Group Name="b" PartOfGroup="a"/>'
    )
    path = asap(tmp_path, annotation(ring(0, 0, 100), "deep"), groups=groups)
    assert painted(path, Classes.of("tumor", "stroma")) == [10_000, 0]
    loop = asap(tmp_path, annotation(ring(0, 0, 100), "a"), groups=groups)
    with pytest.raises(InputError, match=r"\['a'\]"):
        draw(loop)


@pytest.mark.parametrize("name", ["tumor", "Tumour", "metastasis"])
@pytest.mark.parametrize("group", ["_0", "_1", "Tumor"])
@pytest.mark.parametrize("exclusion", ["_2", "Exclusion"])
def test_camelyon16(tmp_path: Path, name: str, group: str, exclusion: str) -> None:
    hole = annotation(ring(150, 150, 50), exclusion)
    path = asap(tmp_path, hole, annotation(ring(100, 100, 200), group))
    assert painted(path, Classes.of(name)) == [37_500]
    larger = asap(tmp_path, annotation(ring(90, 90, 300), exclusion), annotation(
        ring(100, 100, 50), group), annotation(ring(0, 0, 50), group))  # fmt: skip
    assert painted(larger, Classes.of(name)) == [2_500]


def test_asap_without_groups(tmp_path: Path) -> None:
    stray = annotation(ring(0, 0, 100), "None")
    _, record = draw(asap(tmp_path, stray, annotation(ring(200, 0, 100))))
    assert record["painted"] == {"tumor": 10_000}
    assert record["skipped"] == {"without a class": 1}
    assert painted(asap(tmp_path, stray.replace('Name="A"', 'Name="stroma"'))) == [0, 10_000]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (annotation([[1, 1], [float("nan"), 2], [3, 1]]), "annotation 0 .* nan"),
        (annotation([[1, 1], [float("inf"), 2], [3, 1]]), "annotation 0 .* inf"),
        (annotation(ring(0, 0, 9)).replace("X=", "Q="), "annotation 0 .* no 'X'"),
        (annotation(ring(0, 0, 9)).replace('X="0"', 'X="zero"'), "'zero' is no number"),
        ("", "labels not a pixel"),
        ("<Annotation>", "not well-formed"),
    ],
)
def test_bad_asap_is_refused_by_name(tmp_path: Path, item: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        draw(asap(tmp_path, item))
    assert "a.xml" in str(error.value)


def test_entities_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY e "eeee">]><ASAP_Annotations>&e;</ASAP_Annotations>'
    with pytest.raises(InputError, match="not well-formed"):
        draw(text(tmp_path / "a.xml", bomb))


# ImageScope and HALO


def region(points: list[Point], kind: str, tag: str = "Vertex", **attributes: str) -> str:
    stated = "".join(f' {key}="{value}"' for key, value in attributes.items())
    rows = "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f'<Region Type="{kind}"{stated}><Vertices>{rows}</Vertices></Region>'


def layers(path: Path, *items: str, encoding: str = "utf-8") -> Path:
    content = f'<?xml version="1.0" encoding="{encoding}"?><Annotations>{"".join(items)}'
    path.write_bytes((content + "</Annotations>").encode(encoding))
    return path


def layer(name: str, *regions: str, **attributes: str) -> str:
    stated = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<Annotation Name="{name}"{stated}><Regions>{"".join(regions)}</Regions></Annotation>'


def test_imagescope(tmp_path: Path) -> None:
    path = layers(
        tmp_path / "a.xml",
        layer(
            "Tumor",
            region(ring(0, 0, 100), "0", NegativeROA="0"),
            region(ring(25, 25, 50), "0", NegativeROA="1"),
            region(ring(40, 40, 10), "0", NegativeROA="0"),  # an island in the hole
            region([[5, 5], [90, 90]], "3"),
            region([[5, 5], [90, 90]], "4"),
        ),
        layer("stroma", region([[200, 100], [300, 200]], "1"), region(ring(25, 25, 50), "0")),
        layer("", region([[300, 200], [400, 300]], "2", Text="stroma")),
    )
    labels, record = draw(path)
    assert (labels[:101, :101] == 1).sum() == 10_000 - 2_500 + 100
    assert (labels[:101, :101] == 2).sum() == 2_500 - 100  # the other layer is not cut
    assert (labels[100:200, 200:300] == 2).sum() == 10_000
    assert (labels[200:300, 300:400] == 2).sum() == pytest.approx(np.pi * 50**2, rel=5e-3)
    assert record["skipped"] == {"lines or points": 2}
    assert record["format"] == "imagescope"


def test_imagescope_by_description_and_colour(tmp_path: Path) -> None:
    named = layer("", region(ring(0, 0, 100), "0"), LineColor="65280").replace(
        "<Regions>",
        '<Attributes><Attribute Name="Description" Id="0" Value="stroma"/></Attributes><Regions>',
    )
    assert painted(layers(tmp_path / "a.xml", named)) == [0, 10_000]
    coloured = layers(tmp_path / "a.xml", layer("", region(ring(0, 0, 100), "0"), LineColor="255"))
    with pytest.raises(InputError, match="#ff0000"):
        draw(coloured)
    assert painted(coloured, label_names={"#ff0000": "tumor"}) == [10_000, 0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_halo(tmp_path: Path, encoding: str) -> None:
    path = layers(
        tmp_path / "a.annotations",
        layer(
            "Tumor",
            region(square(0, 0, 100), "Polygon", "V", NegativeROA="0", HasEndcaps="0"),
            region([[20, 20], [70, 70]], "Rectangle", "V", NegativeROA="1"),
            region([[0, 0], [9, 9]], "Ruler", "V"),
            region([[9, 9]], "Pin", "V"),
        ),
        layer("Stroma", region([[300, 200], [400, 300]], "Ellipse", "V", NegativeROA="0")),
        encoding=encoding,
    )
    labels, record = draw(path)
    assert (labels == 1).sum() == 7_500
    assert (labels == 2).sum() == pytest.approx(np.pi * 50**2, rel=5e-3)
    assert record["skipped"] == {"lines or points": 2}


# NDP.view

NDPI = SlideGeometry(WIDTH, HEIGHT, 0.5, 0.25, offset_nm=(1_000_000, -2_000_000))


def nm(x: float, y: float) -> tuple[int, int]:
    return (
        round((x - WIDTH / 2) * 500 + 1_000_000),
        round((y - HEIGHT / 2) * 250 - 2_000_000),
    )


def state(inner: str, title: str = "tumor", details: str = "") -> str:
    return (
        f'<ndpviewstate id="1"><title>{title}</title><details>{details}</details>'
        f"<coordformat>nanometers</coordformat><x>0</x><y>0</y>{inner}</ndpviewstate>"
    )


def freehand(points: list[Point], closed: int = 1) -> str:
    rows = "".join("<point><x>{}</x><y>{}</y></point>".format(*nm(x, y)) for x, y in points)
    return (
        f'<annotation type="freehand" displayname="AnnotateFreehand" color="#ff0000">'
        f"<closed>{closed}</closed><pointlist>{rows}</pointlist></annotation>"
    )


def test_ndpa(tmp_path: Path) -> None:
    x, y = nm(350, 200)
    path = text(
        tmp_path / "a.ndpi.ndpa",
        '<?xml version="1.0" encoding="utf-8" standalone="yes"?><annotations>'
        + state(freehand(ring(0, 0, 100)))
        + state(freehand(ring(200, 0, 50)), "Annotation 7", "Stroma")
        + state(freehand(ring(0, 200, 50), closed=0))
        + state('<annotation type="pin"><x>1</x><y>1</y></annotation>')
        + state(f'<annotation type="circle"><x>{x}</x><y>{y}</y><radius>25000</radius>'
                "</annotation>", "stroma")
        + "</annotations>",
    )  # fmt: skip
    labels, record = draw(path, slide=NDPI, mpp=0.5)
    assert labels.shape == (200, 500)  # the pixels of the slide are not square
    assert record["skipped"] == {"lines or points": 2}
    assert (labels[:50, :100] == 1).sum() == 5_000
    assert (labels[:25, 200:250] == 2).sum() == 1_250
    assert (labels == 2).sum() - 1_250 == pytest.approx(np.pi * 50**2, rel=0.02)
    with pytest.raises(InputError, match="XOffsetFromSlideCentre"):
        draw(path)


# Where they lie


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


def test_a_slide_without_labels_is_fine_where_classes_are_exhaustive(tmp_path: Path) -> None:
    classes = Classes.of("tumor", exhaustive=True)
    assert draw(geojson(tmp_path), classes)[1]["painted"] == {}
