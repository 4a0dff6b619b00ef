"""Annotations that are parsed in the sandbox."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from shapely import get_coordinates
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.formats import READERS, format_of
from services.ingest.annotations.outlines import FARTHEST, Annotation, Outline, SlideGeometry
from shared.arrays import Float64
from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.sandbox import Document, read_document

READER = "services.ingest.annotations.sandboxed:parse"


class _Outline(Contract):
    """An `Outline`; its area is polygons of rings, the outer one first: float64 pairs in base64."""

    area: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    hint: str | None
    cut: bool


class _Parsed(Contract):
    """What the parsing process says about an annotation; None of it for masks."""

    format: LabelFormat
    outlines: tuple[_Outline, ...] = ()
    skipped: dict[str, int] = Field(default_factory=dict)
    mpp: float | None = Field(None, gt=0)


_PARSED = TypeAdapter(_Parsed)


def read_annotation(
    path: Path, stated: LabelFormat | None, slide: SlideGeometry
) -> tuple[LabelFormat, Annotation | None]:
    """Read the outlines of a file in the sandbox.

    Args:
        path: the file.
        stated: its format; None: its suffix and content tell.
        slide: the slide.

    Returns:
        The format, and the outlines; None: the file is a mask.

    Raises:
        InputError: no format fits, or the file is malformed.
    """
    if stated is not None and stated not in READERS:
        return stated, None
    value = read_document(READER, path, stated, asdict(slide))
    try:
        parsed = _PARSED.validate_python(value)
        outlines = [
            Outline(_area(item.area), item.names, item.hint, item.cut) for item in parsed.outlines
        ]
    except (ValidationError, ShapelyError, binascii.Error, ValueError, IndexError) as error:
        raise InputError(f"{path.name} cannot be read: its parser answered nonsense") from error
    if parsed.format not in READERS:
        return parsed.format, None
    return parsed.format, Annotation(outlines, Counter(parsed.skipped), parsed.mpp)


def parse(path: Path, stated: LabelFormat | None, slide: dict[str, Any]) -> Document:
    """Parse a file; it runs inside the sandbox. Raises `InputError`."""
    kind = stated or format_of(path)
    if kind not in READERS:
        return Document({"format": kind})
    found = READERS[kind](path, SlideGeometry(**slide))
    outlines = [
        {
            "area": _rings(item.area),
            "names": item.names,
            "hint": item.hint,
            "cut": item.cut,
        }
        for item in found.outlines
    ]
    facts = {"format": kind, "outlines": outlines, "skipped": found.skipped, "mpp": found.mpp}
    return Document(facts)


def _rings(area: BaseGeometry) -> list[list[str]]:
    polygons = area.geoms if isinstance(area, MultiPolygon) else [area]
    return [
        [
            base64.b64encode(get_coordinates(ring).tobytes()).decode()
            for ring in (polygon.exterior, *polygon.interiors)
        ]
        for polygon in polygons
    ]


def _area(polygons: tuple[tuple[str, ...], ...]) -> Polygon | MultiPolygon:
    """Build an area from coordinates alone: a geometry library may fail at forged binaries."""
    parts = [Polygon(_ring(rings[0]), [_ring(ring) for ring in rings[1:]]) for rings in polygons]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _ring(text: str) -> Float64:
    points: Float64 = np.frombuffer(base64.b64decode(text, validate=True)).reshape(-1, 2)
    if not (np.abs(points) <= 10 * FARTHEST).all():
        raise ValueError("no area of a slide")
    return points
