"""Aperio ImageScope XML and HALO .annotations: layers of regions, in the same XML elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from shapely import STRtree, union_all
from shapely.errors import ShapelyError
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.outlines import (
    UNCLOSED,
    Annotation,
    Outline,
    Ring,
    SlideGeometry,
    areas,
    ellipse,
    malformed,
    number,
    polygon,
    read_xml,
    rectangle,
)
from shared.contracts.base import LabelClass

SHAPES = {
    "0": "polygon", "polygon": "polygon", "freehand": "polygon", "area": "polygon",
    "1": "rectangle", "rectangle": "rectangle", "2": "ellipse", "ellipse": "ellipse",
}  # fmt: skip
"""Type of a region → its shape: numbers of ImageScope, words of HALO. Others (3 to 5, Ruler, Pin,
Points) have no area."""


def read(path: Path, slide: SlideGeometry) -> Annotation:
    """Read the layers of ImageScope or HALO.

    The class of a region is the first that is named by its layer, its own text, its own
    description, the layer's attributes, or the layer's colour (#rrggbb, for `label_names`). The
    layer comes first, because the texts of regions are also remarks on single ones. A negative
    region is cut out of the regions of its layer, but regions wholly in it are islands that stay.
    HALO writes drawn lines as polygons, too: with end caps, or without the repeated first point
    that it closes outlines with.

    Raises:
        InputError: the file has another root, or a region is malformed.
    """
    root = read_xml(path, "Annotations")
    annotation = Annotation(mpp=_mpp(root))
    closing = any(
        _is_closed(_vertices(region))
        for region in root.iter("Region")
        if region.get("HasEndcaps") is not None and region.get("Type", "").lower() == "polygon"
    )
    index = 0
    for layer in root.iter("Annotation"):
        positive: list[tuple[BaseGeometry, ET.Element]] = []
        negative: list[BaseGeometry] = []
        for region in layer.iter("Region"):
            index += 1
            kind = (region.get("GeoShape") or region.get("Type") or "0").strip().lower()
            caps = region.get("HasEndcaps", "").strip().lower() if kind == "polygon" else ""
            if kind not in SHAPES or caps in {"1", "true"}:
                annotation.skipped["lines or points"] += 1
                continue
            if caps and closing and not _is_closed(_vertices(region)):
                annotation.skipped[UNCLOSED] += 1
                continue
            try:
                area = _area(SHAPES[kind], _points(region))
            except (KeyError, ValueError, ShapelyError) as error:
                raise malformed(path, f"region {index}", error) from error
            if region.get("NegativeROA", "0").strip().lower() in {"1", "true"}:
                negative.append(area)
            else:
                positive.append((area, region))
        tree = STRtree(negative)
        for area, region in positive:
            near = [negative[i] for i in tree.query(area) if not negative[i].covers(area)]
            left = areas(area.difference(union_all(near))) if near else area
            annotation.add(Outline(left, _names(layer, region)))
    return annotation


def _mpp(root: ET.Element) -> float | None:
    try:
        stated = number(root.get("MicronsPerPixel", ""))
    except ValueError:
        return None
    return stated if stated > 0 else None


def _vertices(region: ET.Element) -> list[ET.Element]:
    return [point for point in region.iter() if point.tag in {"Vertex", "V"}]


def _points(region: ET.Element) -> Ring:
    return [(number(point.attrib["X"]), number(point.attrib["Y"])) for point in _vertices(region)]


def _is_closed(vertices: Sequence[ET.Element]) -> bool:
    """Say whether an outline repeats its first point at its end."""
    return len(vertices) > 3 and vertices[0].attrib == vertices[-1].attrib


def _area(shape: str, points: Ring) -> BaseGeometry:
    if shape == "polygon":
        return polygon(points)
    return rectangle(points) if shape == "rectangle" else ellipse(points)


def _names(layer: ET.Element, region: ET.Element) -> tuple[str, ...]:
    attributes = layer.find("Attributes")
    described = [
        item.get("Value") or (item.get("Name") if item.get("Name") != "Description" else None)
        for item in (attributes if attributes is not None else ())
    ]
    stated = [layer.get("Name"), region.get("Text"), *_descriptions(layer, region), *described]
    color = layer.get("LineColor", "")
    if color.isdecimal():
        value = int(color) & 0xFFFFFF  # blue, green, red
        stated.append(f"#{value & 255:02x}{value >> 8 & 255:02x}{value >> 16:02x}")
    return tuple(name.strip() for name in stated if name and name.strip())


def _descriptions(layer: ET.Element, region: ET.Element) -> list[str | None]:
    """Return what a region says in the column Description; headers may name columns by numbers."""
    columns = {header.get("Id"): header.get("Name") for header in layer.iter("AttributeHeader")}
    return [
        item.get("Value")
        for item in region.iter("Attribute")
        if columns.get(name := item.get("Name"), name) == "Description"
    ]


def write_imagescope(
    path: Path, outlines: Sequence[tuple[Polygon, LabelClass]], slide: SlideGeometry
) -> None:
    """Write a layer for each class, with holes as negative regions."""
    root = ET.Element("Annotations", MicronsPerPixel=f"{slide.scan_mpp[0]:.10g}")
    for place, (label, rings) in enumerate(_layers(outlines), 1):
        layer = ET.SubElement(
            root, "Annotation", Id=str(place), Name=label.name, ReadOnly="0", Type="4",
            LineColor=_color(label), Visible="1", Selected="0",
        )  # fmt: skip
        ET.SubElement(layer, "Attributes")
        regions = ET.SubElement(layer, "Regions")
        ET.SubElement(regions, "RegionAttributeHeaders")
        for count, (ring, hole) in enumerate(rings, 1):
            region = ET.SubElement(
                regions, "Region", Id=str(count), Type="0", Zoom="1", ImageLocation="",
                ImageFocus="-1", Text="", NegativeROA=str(int(hole)), InputRegionId="0",
                Analyze="1", DisplayId=str(count),
            )  # fmt: skip
            ET.SubElement(region, "Attributes")
            vertices = ET.SubElement(region, "Vertices")
            for x, y in ring:
                ET.SubElement(vertices, "Vertex", X=f"{x:.10g}", Y=f"{y:.10g}", Z="0")
        ET.SubElement(layer, "Plots")
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def write_halo(
    path: Path, outlines: Sequence[tuple[Polygon, LabelClass]], slide: SlideGeometry
) -> None:
    """Write a layer for each class, with holes as negative regions."""
    root = ET.Element("Annotations")
    for label, rings in _layers(outlines):
        layer = ET.SubElement(
            root, "Annotation", LineColor=_color(label), Name=label.name, Visible="True"
        )
        regions = ET.SubElement(layer, "Regions")
        for ring, hole in rings:
            region = ET.SubElement(
                regions, "Region", Type="Polygon", HasEndcaps="0", NegativeROA=str(int(hole))
            )
            vertices = ET.SubElement(region, "Vertices")
            for x, y in [*ring, ring[0]]:
                ET.SubElement(vertices, "V", X=f"{x:.10g}", Y=f"{y:.10g}")
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _layers(
    outlines: Sequence[tuple[Polygon, LabelClass]],
) -> Iterable[tuple[LabelClass, list[tuple[Ring, bool]]]]:
    """Group rings by class, but the background's; each says whether it is a hole."""
    layers: dict[int, tuple[LabelClass, list[tuple[Ring, bool]]]] = {}
    for area, label in outlines:
        if not label.index:
            continue
        _, rings = layers.setdefault(label.index, (label, []))
        rings.append((list(area.exterior.coords[:-1]), False))
        rings.extend((list(hole.coords[:-1]), True) for hole in area.interiors)
    return (layers[index] for index in sorted(layers))


def _color(label: LabelClass) -> str:
    red, green, blue = label.color
    return str(red | green << 8 | blue << 16)
