"""Which format an annotation has, and its reader and writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from defusedxml.ElementTree import iterparse
from shapely.geometry import Polygon

from services.ingest.annotations import asap, ndpa, qupath, regions
from services.ingest.annotations.outlines import (
    Annotation,
    ForeignError,
    SlideGeometry,
    xml_faults,
)
from shared.contracts.annotations import FORMATS, LabelFormat, formats_of, known_formats
from shared.contracts.base import LabelClass
from shared.errors import InputError
from shared.imaging.masks import image_kind

READERS: dict[LabelFormat, Callable[[Path, SlideGeometry], Annotation]] = {
    "qupath": qupath.read,
    "asap": asap.read,
    "imagescope": regions.read,
    "halo": regions.read,
    "ndpa": ndpa.read,
}
"""Readers of the formats that hold outlines; the other formats are masks."""

Write = Callable[[Path, Sequence[tuple[Polygon, LabelClass]], SlideGeometry], None]

WRITERS: dict[LabelFormat, Write] = {
    "qupath": qupath.write,
    "asap": asap.write,
    "imagescope": regions.write_imagescope,
    "halo": regions.write_halo,
    "ndpa": ndpa.write,
}
"""Writers of these formats: of polygons in level-0 pixels with their classes, background too."""


def format_of(path: Path) -> LabelFormat:
    """Find an annotation's format by its suffix, or its content; that of XML by its root element.

    Raises:
        ForeignError: the root element is that of no format.
        InputError: no format fits.
    """
    kinds = formats_of(path.name)
    if not kinds:
        if image_kind(path) is None:
            raise InputError(f"{path.name}: labels must be {known_formats()}")
        return "mask"
    if kinds[0].root is None:
        return kinds[0].name
    root = _root_of(path)
    fitting = [kind.name for kind in (*kinds, *FORMATS) if kind.root == root]
    if not fitting:
        known = ", ".join(f"<{kind.root}> ({kind.doc})" for kind in FORMATS if kind.root)
        raise ForeignError(
            path, f"has the root <{root[:60]}>, which is no annotation", f"known are {known}"
        )
    return fitting[0]


def _root_of(path: Path) -> str:
    with xml_faults(path):
        for _, element in iterparse(path, events=("start",)):
            return str(element.tag)
    raise InputError(f"{path.name} is empty")
