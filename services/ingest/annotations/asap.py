"""ASAP XML, with the groups of Camelyon16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from shapely.errors import ShapelyError
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.outlines import (
    Annotation,
    Outline,
    Ring,
    SlideGeometry,
    malformed,
    number,
    polygon,
    read_xml,
    rectangle,
)
from shared.contracts.base import LabelClass
from shared.errors import quoted

Floats = NDArray[np.float64]

TUMOR = ("tumor", "tumour", "metastasis", "metastases")
"""Class names that Camelyon16's tumour groups stand for, in this order."""

TUMOR_GROUPS = {"_0", "_1", *TUMOR}
CUT_GROUPS = {"_2", "exclusion"}

WITHOUT_AREA = {"dot", "pointset", "measurement", "none"}

CURVE_POINTS = 16
"""Number of points that stand for the curve between two points of a spline."""


def read(path: Path, slide: SlideGeometry) -> Annotation:
    """Read the annotations of ASAP, splines as ASAP draws them.

    The class is that of the group, or of the group above it; in a file without groups, the name
    of the annotation. The groups _0, _1 and Tumor of Camelyon16 are the class tumor (tumour,
    metastasis); _2 and Exclusion are cut out.

    Raises:
        InputError: the file is not ASAP XML, or an annotation is malformed.
    """
    root = read_xml(path, "ASAP_Annotations")
    above = {group.get("Name"): group.get("PartOfGroup") for group in root.iter("Group")}
    annotation = Annotation()
    for index, item in enumerate(root.iter("Annotation")):
        kind = item.get("Type", "Polygon").lower()
        if kind in WITHOUT_AREA:
            annotation.skipped["lines or points"] += 1
            continue
        try:
            area = _area(kind, _points(item))
        except (KeyError, ValueError, ShapelyError) as error:
            raise malformed(path, f"annotation {index}", error) from error
        groups: list[str] = []
        group = item.get("PartOfGroup")
        while group and group != "None" and group not in groups:
            groups.append(group)
            group = above.get(group)
        plain = {name.lower() for name in groups}
        names = (*groups, *(TUMOR if plain & TUMOR_GROUPS else ()))
        hint = None if groups else item.get("Name") or "None"
        annotation.add(Outline(area, names, hint, cut=bool(plain & CUT_GROUPS)))
    return annotation


def _points(item: ET.Element) -> Ring:
    """Return the points in their stated order, or as they stand if an order is missing."""
    found = [
        (number(point.attrib["X"]), number(point.attrib["Y"]), point.get("Order"))
        for point in item.iter("Coordinate")
    ]
    if all(order is not None for _, _, order in found):
        found.sort(key=lambda point: number(point[2]))
    return [(x, y) for x, y, _ in found]


def _area(kind: str, points: Ring) -> BaseGeometry:
    if kind not in {"polygon", "spline", "rectangle"}:
        raise ValueError(f"{quoted(kind[:40])} is no type of ASAP")
    if kind == "rectangle":
        return rectangle(points)
    return polygon(_spline(points) if kind == "spline" else points)


def _spline(points: Ring) -> Ring:
    """Return the closed curve through points that ASAP draws: a centripetal Catmull-Rom spline.

    As in ASAP, the last two pieces continue their neighbours straight instead of looking
    around the closing point.
    """
    knots = np.asarray([p for i, p in enumerate(points) if i == 0 or p != points[i - 1]], float)
    if len(knots) > 1 and (knots[0] == knots[-1]).all():
        knots = knots[:-1]
    count = len(knots)
    if count < 3:
        return []
    curve = []
    for i in range(count):
        p1, p2 = knots[i], knots[(i + 1) % count]
        p0 = p1 - (p2 - p1) if i == count - 1 else knots[i - 1]
        p3 = p2 + (p2 - p1) if i == count - 2 else knots[(i + 2) % count]
        curve.append(_piece(p0, p1, p2, p3))
    return [(float(x), float(y)) for x, y in np.concatenate(curve)]


def _piece(p0: Floats, p1: Floats, p2: Floats, p3: Floats) -> Floats:
    """Return the piece of a spline from p1 to p2, without p2: float (CURVE_POINTS, 2)."""
    d1, d2, d3 = (float(np.hypot(*(b - a))) for a, b in ((p0, p1), (p1, p2), (p2, p3)))
    r1, r2, r3 = d1**0.5, d2**0.5, d3**0.5
    b1 = (d1 * p2 - d2 * p0 + (2 * d1 + 3 * r1 * r2 + d2) * p1) / (3 * r1 * (r1 + r2))
    b2 = (d3 * p1 - d2 * p3 + (2 * d3 + 3 * r3 * r2 + d2) * p2) / (3 * r3 * (r3 + r2))
    t: Floats = (np.arange(CURVE_POINTS) / CURVE_POINTS)[:, None]
    s = 1 - t
    return np.asarray(s**3 * p1 + 3 * s**2 * t * b1 + 3 * s * t**2 * b2 + t**3 * p2)


def write(path: Path, outlines: Sequence[tuple[Polygon, LabelClass]], slide: SlideGeometry) -> None:
    """Write filled polygons, the larger first; holes are polygons of what fills them."""
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    groups: dict[str, str] = {}
    for index, (area, label) in enumerate(outlines):
        color = "#{:02X}{:02X}{:02X}".format(*label.color)
        groups[label.name] = color
        item = ET.SubElement(
            annotations, "Annotation", Name=f"Annotation {index}", Type="Polygon",
            PartOfGroup=label.name, Color=color,
        )  # fmt: skip
        coordinates = ET.SubElement(item, "Coordinates")
        for order, (x, y) in enumerate(area.exterior.coords[:-1]):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.10g}", Y=f"{y:.10g}")
    listed = ET.SubElement(root, "AnnotationGroups")
    for name, color in groups.items():
        group = ET.SubElement(listed, "Group", Name=name, PartOfGroup="None", Color=color)
        ET.SubElement(group, "Attributes")
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
