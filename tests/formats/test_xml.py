"""ASAP, ImageScope, HALO and NDP.view files: the painted pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.ingest.annotations.outlines import UNCLOSED, SlideGeometry
from shared.contracts.base import Classes
from shared.errors import InputError
from tests.formats.drawing import HEIGHT, WIDTH, draw, painted
from tests.formats.outline_files import Point, square, text

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
    with pytest.raises(InputError, match=r"'stroma': 'a'"):
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
        (annotation(ring(0, 0, 9), kind="Circle"), "annotation 0 .* 'circle' is no type of ASAP"),
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
    other = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><ASAP_Annotations/>'
    for content in (bomb, other):
        with pytest.raises(InputError, match=r"a\.xml declares entities .*not accepted.*delete"):
            draw(text(tmp_path / "a.xml", content))


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
    assert record["mpp"] is None


def test_an_annotation_of_another_scan_is_told(tmp_path: Path) -> None:
    path = layers(tmp_path / "a.xml", layer("Tumor", region(ring(0, 0, 100), "0")))
    said = []
    for stated in ("1.02", "0.5", "0", "x"):
        text = path.read_text().partition("<Annotation ")[2]
        path.write_text(f'<Annotations MicronsPerPixel="{stated}"><Annotation {text}')
        said.append(draw(path)[1]["mpp"])
    assert said == [None, 0.5, None, None]  # the slide has 1 µm per pixel
    slide = SlideGeometry(WIDTH, HEIGHT, 1.0, 1.0, stated_mpp=(0.5, 0.5))
    for stated, other in (("0.5", None), ("1.0", 1.0)):  # ImageScope knows what the file states
        path.write_text(f'<Annotations MicronsPerPixel="{stated}"><Annotation {text}')
        assert draw(path, slide=slide)[1]["mpp"] == other


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


def test_imagescope_by_the_name_of_an_attribute(tmp_path: Path) -> None:
    named = layer("", region(ring(0, 0, 100), "0"), LineColor="65280").replace(
        "<Regions>", '<Attributes><Attribute Name="Stroma" Id="0" Value=""/></Attributes><Regions>'
    )
    assert painted(layers(tmp_path / "a.xml", named)) == [0, 10_000]


HEADERS = (
    '<RegionAttributeHeaders><AttributeHeader Id="1" Name="Description"/>'
    '<AttributeHeader Id="2" Name="Area"/></RegionAttributeHeaders>'
)


@pytest.mark.parametrize(
    ("name", "words", "column", "expected"),
    [
        ("Layer 1", "", "Description", "stroma"),
        ("", "", "1", "stroma"),  # the number of a column
        ("", "tumor", "Description", "tumor"),  # the text comes first
        ("tumor", "", "Description", "tumor"),  # and the layer before both
        ("tumor", "stroma", "Description", "tumor"),
        ("", "check", "Description", "stroma"),  # what is no class is passed over
    ],
)
def test_imagescope_by_the_description_of_a_region(
    tmp_path: Path, name: str, words: str, column: str, expected: str
) -> None:
    item = region(ring(0, 0, 100), "0", Text=words).replace(
        "<Vertices>",
        f'<Attributes><Attribute Name="{column}" Value="stroma"/></Attributes><Vertices>',
    )
    path = layers(tmp_path / "a.xml", layer(name, HEADERS + item))
    assert painted(path) == {"tumor": [10_000, 0], "stroma": [0, 10_000]}[expected]
    other = text(tmp_path / "b.xml", path.read_text().replace(f'Name="{column}" V', 'Name="2" V'))
    if expected == "stroma":  # as that of the column Area it is no class
        with pytest.raises(InputError):
            draw(other)


def test_lines_of_halo_are_no_outlines(tmp_path: Path) -> None:
    """HALO writes drawn lines as polygons; only outlines repeat their first point."""
    curve: list[Point] = [[0, 0], [100, 50], [200, 0], [300, 50]]
    lines = [region(curve, "Polygon", "V", NegativeROA="0", HasEndcaps=caps) for caps in ("1", "0")]
    outline = region(square(0, 100, 100), "Polygon", "V", NegativeROA="0", HasEndcaps="0")
    path = layers(tmp_path / "a.annotations", layer("Tumor", *lines, outline))
    labels, record = draw(path)
    assert (labels == 1).sum() == labels[100:200, :100].sum() == 10_000
    assert record["skipped"] == {"lines or points": 1, UNCLOSED: 1}
    # Other programmes do not close outlines.
    unclosed = region(ring(0, 0, 100), "Polygon", "V", NegativeROA="0", HasEndcaps="0")
    assert painted(layers(tmp_path / "a.annotations", layer("Tumor", unclosed))) == [10_000, 0]


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
