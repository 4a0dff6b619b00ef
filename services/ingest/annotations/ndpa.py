"""Hamamatsu .ndpa: outlines in nanometres from the centre of the glass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from shapely.errors import ShapelyError
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.outlines import (
    Annotation,
    Outline,
    SlideGeometry,
    ellipse,
    malformed,
    number,
    polygon,
    read_xml,
)
from shared.contracts.base import LabelClass
from shared.errors import InputError, quoted


def read(path: Path, slide: SlideGeometry) -> Annotation:
    """Read closed outlines, rectangles and circles; the class is the title, else the details.

    Raises:
        InputError: the file is no .ndpa file, an annotation is malformed, or the slide does not
            state where it lies on the glass.
    """
    root = read_xml(path, "annotations")
    to_x, to_y = _frame(path, slide)
    annotation = Annotation()
    for index, state in enumerate(root.iter("ndpviewstate")):
        item = state.find("annotation")
        if item is None:
            continue
        try:
            area = _area(item, state.findtext("coordformat"), to_x, to_y)
        except (KeyError, ValueError, ShapelyError) as error:
            raise malformed(path, f"annotation {index}", error) from error
        if area is None:
            annotation.skipped["lines or points"] += 1
            continue
        stated = (state.findtext("title"), state.findtext("details"))
        annotation.add(
            Outline(area, tuple(name.strip() for name in stated if name and name.strip()))
        )
    return annotation


Convert = Callable[[float], float]


def _frame(path: Path, slide: SlideGeometry) -> tuple[Convert, Convert]:
    """Return the functions from nm, in x and y, to level-0 pixels."""
    if slide.offset_nm is None:
        raise InputError(
            f"{path.name} counts from the centre of the glass, but its slide does not state where "
            "it lies there (hamamatsu.XOffsetFromSlideCentre): use the .ndpi file, or export "
            "GeoJSON from QuPath"
        )
    (x, y), (mpp, mpp_y) = slide.offset_nm, slide.scan_mpp
    return (
        lambda value: (value - x) / (1000 * mpp) + slide.width / 2,
        lambda value: (value - y) / (1000 * mpp_y) + slide.height / 2,
    )


def _area(item: ET.Element, unit: str | None, to_x: Convert, to_y: Convert) -> BaseGeometry | None:
    """Return the area of an annotation; None for pins, rulers and open lines."""
    kind = item.get("type", "freehand").strip().lower()
    if kind not in {"freehand", "circle"} or (
        kind == "freehand" and item.findtext("closed", "1").strip() == "0"
    ):
        return None
    if unit and unit.strip().lower() not in {"nanometers", "nanometres", "nm"}:
        raise ValueError(f"its unit is {quoted(unit.strip())}, not nanometers")
    if kind == "circle":
        x, y, radius = (number(item.findtext(tag)) for tag in ("x", "y", "radius"))
        corners = [(to_x(x + sign * radius), to_y(y + sign * radius)) for sign in (-1, 1)]
        return ellipse(corners)
    return polygon(
        [
            (to_x(number(point.findtext("x"))), to_y(number(point.findtext("y"))))
            for point in item.iter("point")
        ]
    )


def write(path: Path, outlines: Sequence[tuple[Polygon, LabelClass]], slide: SlideGeometry) -> None:
    """Write filled outlines, the larger first; holes are outlines of what fills them.

    Raises:
        InputError: the slide does not state where it lies on the glass.
    """
    if slide.offset_nm is None:
        raise InputError(
            ".ndpa counts from the centre of the glass, where only NDPI slides say that they lie: "
            "choose another format"
        )
    mpp, mpp_y = slide.scan_mpp
    root = ET.Element("annotations")
    for index, (area, label) in enumerate(outlines, 1):
        state = ET.SubElement(root, "ndpviewstate", id=str(index))
        texts = {
            "title": label.name, "details": "", "coordformat": "nanometers", "lens": "1",
            "x": "0", "y": "0", "z": "0", "showtitle": "0", "showhistogram": "0",
            "showlineprofile": "0",
        }  # fmt: skip
        for tag, text in texts.items():
            ET.SubElement(state, tag).text = text
        color = "#{:02x}{:02x}{:02x}".format(*label.color)
        item = ET.SubElement(
            state, "annotation", type="freehand", displayname="AnnotateFreehand", color=color
        )
        ET.SubElement(item, "measuretype").text = "0"
        ET.SubElement(item, "closed").text = "1"
        points = ET.SubElement(item, "pointlist")
        for x, y in area.exterior.coords[:-1]:
            nm = (
                (x - slide.width / 2) * 1000 * mpp + slide.offset_nm[0],
                (y - slide.height / 2) * 1000 * mpp_y + slide.offset_nm[1],
            )
            point = ET.SubElement(points, "point")
            for tag, value in zip("xy", nm, strict=True):
                ET.SubElement(point, tag).text = str(round(value))
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
