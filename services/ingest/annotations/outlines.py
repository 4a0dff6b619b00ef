"""Outlines, what readers of annotations return, and the shapes that they are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse
from shapely import (
    STRtree,
    get_coordinates,
    get_parts,
    get_rings,
    linestrings,
    make_valid,
    union_all,
)
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry

from shared.errors import InputError, quoted
from shared.imaging.slide import Slide

Ring = Sequence[tuple[float, float]]


class ForeignError(InputError):
    """A file is of no format of annotations, though it has the name of one.

    Attributes:
        why: words that follow the file's name.
    """

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(f"{path.name} {why}: {remedy}")
        self.why = why


MAX_CROSSINGS = 100_000
"""Largest number of pairs of an outline's segments whose boxes overlap, neighbours aside."""

UNCLOSED = "unclosed outlines, taken for lines"
"""Reason for which objects are left out that may have been meant as areas."""

FARTHEST = 1e9
"""Largest coordinate that is taken for one, pixels."""


@dataclass(frozen=True)
class SlideGeometry:
    """Size and place of a slide, as readers and writers of annotations need them.

    Attributes:
        width, height: level-0 pixels.
        mpp, mpp_y: µm per level-0 pixel, along x and y.
        bounds: x, y, width and height of the scanned area, level-0 pixels; None if not stated.
        offset_nm: centre of the image from the centre of the glass, nm; None if not stated.
        downsamples: width of level 0 / width of each level.
        stated_mpp: what the file states as µm per pixel along x and y; None: nothing.
        level_sizes: width and height of each level, pixels.
    """

    width: int
    height: int
    mpp: float
    mpp_y: float
    bounds: tuple[int, int, int, int] | None = None
    offset_nm: tuple[float, float] | None = None
    downsamples: tuple[float, ...] = ()
    stated_mpp: tuple[float, float] | None = None
    level_sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, slide: Slide) -> SlideGeometry:
        """Return the geometry of an open slide."""
        return cls(
            slide.width, slide.height, slide.mpp, slide.mpp_y, slide.bounds, slide.offset_nm,
            slide.downsamples, slide.stated_mpp, slide.source.level_dimensions,
        )  # fmt: skip

    @property
    def scan_mpp(self) -> tuple[float, float]:
        """µm per pixel along x and y by which other programmes measure on this slide.

        They know what the file states, and not the `mpp` that replaces it here.
        """
        return self.stated_mpp or (self.mpp, self.mpp_y)


@dataclass(frozen=True)
class Outline:
    """An annotated area.

    Attributes:
        area: polygon or multipolygon, pixels.
        names: names of its class; the first one that belongs to a class counts.
        hint: name that counts only if it belongs to a class, and no other name does.
        cut: whether the area is cut out of all others, unless its name belongs to a class.
    """

    area: BaseGeometry
    names: tuple[str, ...] = ()
    hint: str | None = None
    cut: bool = False


@dataclass
class Annotation:
    """What a file of annotations holds.

    Attributes:
        outlines: its areas, in the order of the file.
        skipped: number of objects left out, by reason.
        mpp: µm per pixel of the scan that it was drawn on, if the file states it.
        renamed: those of the names to be renamed that it holds.
    """

    outlines: list[Outline] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    mpp: float | None = None
    renamed: set[str] = field(default_factory=set)

    def add(self, outline: Outline) -> None:
        """Add an outline, or count it if its area is empty."""
        if outline.area.is_empty or not outline.area.area:
            self.skipped["without an area"] += 1
        else:
            self.outlines.append(outline)


def polygon(
    shell: Ring, holes: Iterable[Ring] = (), skipped: Counter[str] | None = None
) -> BaseGeometry:
    """Make a polygon, without holes that have no area; empty if the shell has none.

    A shell that crosses itself is filled as it is drawn (nonzero winding). A hole that lies
    outside the shell cuts nothing; it is added to `skipped`.
    """
    if len(shell) < 3:
        return Polygon()
    outer = _valid(Polygon(shell))
    inner = [_valid(Polygon(hole)) for hole in holes if len(hole) >= 3]
    cutting = [hole for hole in inner if hole.area and outer.intersection(hole).area]
    if skipped is not None and (outside := sum(hole.area > 0 for hole in inner) - len(cutting)):
        skipped["holes outside their outlines"] += outside
    return areas(outer.difference(union_all(cutting))) if cutting else outer


def _valid(area: Polygon) -> BaseGeometry:
    if area.is_valid:
        return area
    _check_crossings(area)
    return areas(make_valid(area, method="structure", keep_collapsed=False))


def _check_crossings(area: Polygon) -> None:
    """Raise `InputError` if an outline crosses itself so often that repairing it takes minutes."""
    points = get_coordinates(area.exterior)
    segments = linestrings(np.stack([points[:-1], points[1:]], 1))
    boxes = STRtree(segments).query(segments)
    crossings = (
        boxes.shape[1] - 3 * len(segments)
    ) // 2  # each lies in its own and its neighbours'
    if crossings > MAX_CROSSINGS:
        raise InputError(
            f"an outline of {len(segments)} points may cross itself {crossings:,} times: draw it "
            "again"
        )


def areas(geometry: BaseGeometry) -> BaseGeometry:
    """Return the polygons of a geometry, without its points and lines."""
    parts = [
        piece
        for part in get_parts(geometry)
        for piece in get_parts(part)
        if isinstance(piece, Polygon) and not piece.is_empty
    ]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def rectangle(points: Ring) -> BaseGeometry:
    """Make a polygon of four corners, or of two opposite ones."""
    if len(points) != 2:
        return polygon(points)
    (left, top), (right, bottom) = points
    return box(min(left, right), min(top, bottom), max(left, right), max(top, bottom))


def ellipse(points: Ring) -> BaseGeometry:
    """Make the ellipse within two opposite corners, or within four corners, of its box."""
    if len(points) not in {2, 4}:
        return polygon(points)
    corners = np.asarray(points, float)
    if len(points) == 2:
        low, high = corners.min(0), corners.max(0)
        center, axes = (low + high) / 2, np.diag(high - low) / 2
    else:
        center = corners.mean(0)
        axes = np.stack([corners[1] - corners[0], corners[2] - corners[1]]) / 2
    angles = np.linspace(0, 2 * math.pi, 257)[:-1, None]
    return polygon((center + np.cos(angles) * axes[0] + np.sin(angles) * axes[1]).tolist())


def number(text: object) -> float:
    """Read a coordinate; a decimal comma counts as a point.

    Raises:
        ValueError: it is no number, or none that a coordinate can be.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"{text!r} is no number")
    try:
        value = float(text.replace(",", ".") if isinstance(text, str) else text)
    except (ValueError, OverflowError):
        raise ValueError(f"{quoted(str(text)[:40])} is no number") from None
    if not abs(value) <= FARTHEST:
        raise ValueError(f"{value} is no coordinate")
    return value


@contextmanager
def xml_faults(path: Path) -> Iterator[None]:
    """Turn the errors of parsing an XML file into an `InputError`."""
    try:
        yield
    except DefusedXmlException as error:
        raise InputError(
            f"{path.name} declares entities or reads other files (in its <!DOCTYPE …>), which is "
            "not accepted, because a file could fill the memory so: delete this declaration"
        ) from error
    except (ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path.name} is not well-formed XML: {error}") from error


def read_xml(path: Path, root: str) -> Element:
    """Read an XML file, and return its root element.

    Raises:
        InputError: the file is not well-formed XML, or has another root.
    """
    with xml_faults(path):
        found = cast(Element, parse(path).getroot())
    if found.tag != root:
        raise InputError(f"{path.name} has the root <{str(found.tag)[:60]}>, not <{root}>")
    return found


def malformed(path: Path, what: str, error: Exception) -> InputError:
    """Make the error of one malformed object, such as 'annotation 3', of a file."""
    if isinstance(error, KeyError):
        reason = f"it has no {error}"
    elif isinstance(error, TypeError | AttributeError | IndexError):
        reason = "its parts are not those of the format"
    else:
        reason = str(error)
    return InputError(f"{path.name}: {what} is malformed: {reason}. Export the file again")


def settle(outlines: list[Outline]) -> list[Outline]:
    """Convert outlines that were traced along pixel centres to continuous coordinates.

    Contour tracers such as OpenCV's return the indices of boundary pixels: all vertices are
    integers, and some edges are diagonal. Such outlines are shifted by half a pixel, to the
    centres of these pixels, and slightly widened to include them. Outlines along pixel edges
    (axis-parallel) and drawn outlines (fractions) are returned unchanged.
    """
    polygons = get_parts([outline.area for outline in outlines])
    rings = [get_coordinates(ring) for ring in get_rings(polygons)]
    whole = all((ring == ring.round()).all() for ring in rings)
    steps = (np.abs(np.diff(ring, axis=0)) for ring in rings)
    diagonal = any(((step == 1).all(1)).any() for step in steps)
    if not (whole and diagonal):
        return outlines
    return [
        Outline(
            translate(outline.area, 0.5, 0.5).buffer(0.01), outline.names, outline.hint, outline.cut
        )
        for outline in outlines
    ]
