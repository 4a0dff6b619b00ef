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
from shapely import from_wkb, get_coordinates, to_wkb
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.formats import READERS, format_of
from services.ingest.annotations.outlines import FARTHEST, Annotation, Outline, SlideGeometry
from shared.contracts.annotations import LabelFormat
from shared.contracts.base import Contract
from shared.errors import InputError
from shared.sandbox import Document, read_document

READER = "services.ingest.annotations.sandboxed:parse"


class _Outline(Contract):
    """An `Outline`; its area is well-known binary in base64."""

    area: str
    names: tuple[str, ...]
    hint: str | None
    cut: bool


class _Parsed(Contract):
    """What the parsing process says about an annotation; None of it for masks."""

    format: LabelFormat
    outlines: tuple[_Outline, ...] = ()
    skipped: dict[str, int] = Field(default_factory=dict)


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
    except (ValidationError, ShapelyError, binascii.Error, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: its parser answered nonsense") from error
    if parsed.format not in READERS:
        return parsed.format, None
    return parsed.format, Annotation(outlines, Counter(parsed.skipped))


def parse(path: Path, stated: LabelFormat | None, slide: dict[str, Any]) -> Document:
    """Parse a file; it runs inside the sandbox. Raises `InputError`."""
    kind = stated or format_of(path)
    if kind not in READERS:
        return Document({"format": kind})
    found = READERS[kind](path, SlideGeometry(**slide))
    outlines = [
        {
            "area": base64.b64encode(to_wkb(item.area)).decode(),
            "names": item.names,
            "hint": item.hint,
            "cut": item.cut,
        }
        for item in found.outlines
    ]
    return Document({"format": kind, "outlines": outlines, "skipped": found.skipped})


def _area(text: str) -> BaseGeometry:
    area = from_wkb(base64.b64decode(text, validate=True))
    points = get_coordinates(area)
    if not isinstance(area, Polygon | MultiPolygon) or not (np.abs(points) <= 10 * FARTHEST).all():
        raise ValueError("no area of a slide")
    return area
