"""QuPath GeoJSON, as every version of QuPath writes it, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shapely import union_all
from shapely.errors import ShapelyError
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from services.ingest.annotations.outlines import (
    Annotation,
    ForeignError,
    Outline,
    SlideGeometry,
    areas,
    malformed,
    number,
    polygon,
)
from shared.contracts.base import LabelClass
from shared.errors import InputError, quoted

MAX_BYTES = 4 * 2**30

MIN_UNPACKED, MOST_PACKED = 64 << 20, 100
"""Bytes that a packed file may always hold, and times its own size that a larger one may: real
annotations are packed to a tenth or a twentieth, endless blanks to a thousandth."""
"""Largest size of a file, unpacked."""

GEOJSON = {"features", "geometry", "geometries", "coordinates"}
"""Fields of which GeoJSON has one."""

LINES_AND_POINTS = {"Point", "MultiPoint", "LineString", "MultiLineString"}

DETECTIONS = {"detection", "cell", "tile"}
"""Types of QuPath objects that are no annotations."""

OLD_TYPES = {f"Path{kind.title()}Object": kind for kind in ("annotation", "root", *DETECTIONS)}
"""Names of these types in QuPath 0.2."""


def read(path: Path, slide: SlideGeometry) -> Annotation:
    """Read a FeatureCollection, a list of features or geometries, or one of them.

    Detections, cells and tiles are left out if the file holds annotations.

    Raises:
        InputError: the file is not GeoJSON, or an object is malformed.
    """
    features = _with_children(_features(path))
    annotation = Annotation()
    drawn = any(_type_of(feature) == "annotation" for feature in features)
    for index, feature in enumerate(features):
        try:
            if drawn and _type_of(feature) in DETECTIONS:
                annotation.skipped["detections"] += 1
                continue
            bare = "coordinates" in feature or "geometries" in feature
            geometry = feature if bare else feature["geometry"]
            if geometry is not None and geometry["type"] in LINES_AND_POINTS:
                annotation.skipped["lines or points"] += 1
                continue
            area = Polygon() if geometry is None else _area(geometry, annotation.skipped)
            names = _names(feature.get("properties") or {})
        except RecursionError as error:
            raise malformed(
                path, f"feature {index}", ValueError("it is nested too deep")
            ) from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ShapelyError) as error:
            raise malformed(path, f"feature {index}", error) from error
        annotation.add(Outline(area, names))
    return annotation


def names_classes(path: Path) -> bool:
    """Say whether an object of a file names a class, or the file holds no object at all.

    Raises:
        ForeignError: it is not GeoJSON.
        InputError: it is damaged.
    """
    features = _with_children(_features(path))
    try:
        return not features or any(_names(item.get("properties") or {}) for item in features)
    except AttributeError as error:
        raise malformed(path, "a feature", error) from error


def _features(path: Path) -> list[Any]:
    """Return the features of a file, or its geometries.

    Raises:
        ForeignError: it has none.
        InputError: it is damaged.
    """
    content = _parse(path)
    fields = content[0] if isinstance(content, list) and content else content
    if isinstance(fields, dict) and not GEOJSON & set(fields) and _type_of(fields) != "root":
        listed = ", ".join(str(name)[:40] for name in list(fields)[:6]) or "none"
        raise ForeignError(
            path,
            f"holds no GeoJSON features (its fields are {listed})",
            "export GeoJSON, as QuPath does",
        )
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise ForeignError(path, "holds no GeoJSON features", "export it as GeoJSON again")
    return features


def _with_children(features: list[Any]) -> list[Any]:
    """Add the objects that QuPath writes within others; a root object has only these."""
    found = []
    waiting = features[::-1]
    while waiting:
        feature = waiting.pop()
        properties = feature.get("properties") if isinstance(feature, dict) else None
        inner = properties.get("childObjects") if isinstance(properties, dict) else None
        if _type_of(feature) != "root":
            found.append(feature)
        if isinstance(inner, list):
            waiting += inner[::-1]
    return found


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            most = min(MAX_BYTES, max(MIN_UNPACKED, MOST_PACKED * len(data)))
            data = _unzipped(path, most)
            if len(data) > most:
                raise InputError(
                    f"{path.name} holds more than {most >> 20} MiB, packed beyond what annotations "
                    "can be: unpack it first"
                )
        if len(data) > MAX_BYTES:
            raise InputError(f"{path.name} is larger than {MAX_BYTES >> 30} GiB: split it")
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        return json.loads(data.decode("utf-16" if utf16 else "utf-8-sig"))
    except RecursionError as error:
        raise InputError(f"{path.name} is nested too deep to be GeoJSON") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path.name} is not UTF-8 (byte {error.start}): save it with this encoding"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name} is not JSON, or not all of it (line {error.lineno}, column "
            f"{error.colno}): export it as GeoJSON again"
            if data.strip()
            else f"{path.name} is empty: export it as GeoJSON again"
        ) from error
    except ValueError as error:
        raise InputError(f"{path.name} holds a number of thousands of digits") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path.name} cannot be read: {error}. Is it damaged or incomplete? Export it again"
        ) from error


def _unzipped(path: Path, most: int) -> bytes:
    """Read a gzip file, or what exceeds `most` bytes just so that it is seen."""
    data = bytearray()
    with gzip.open(path) as file:  # in pieces: a read of n bytes asks for n bytes of memory
        while len(data) <= most and (piece := file.read(1 << 20)):
            data += piece
    return bytes(data)


def _type_of(feature: Any) -> str | None:
    """Return QuPath's type of an object: annotation, detection, cell …; None if not stated."""
    if not isinstance(feature, dict):
        return None
    properties = feature.get("properties")
    stated = properties if isinstance(properties, dict) else {}
    kind = stated.get("objectType") or stated.get("object_type") or feature.get("id")
    return OLD_TYPES.get(str(kind), str(kind))


def _area(geometry: Any, skipped: Counter[str]) -> BaseGeometry:
    """Return the area of a geometry; parts that overlap are united."""
    kind = geometry["type"]
    if kind == "GeometryCollection":
        return areas(union_all([_area(part, skipped) for part in geometry["geometries"]]))
    if kind in LINES_AND_POINTS:
        return Polygon()
    if kind not in {"Polygon", "MultiPolygon"}:
        raise ValueError(f"{quoted(str(kind)[:40])} is no type of GeoJSON")
    coordinates = geometry["coordinates"]
    polygons = [coordinates] if kind == "Polygon" else coordinates
    parts = [
        polygon(rings[0], rings[1:], skipped)
        for rings in ([_ring(ring) for ring in rings] for rings in polygons)
        if rings
    ]
    return parts[0] if len(parts) == 1 else areas(union_all(parts))


def _ring(points: Any) -> list[tuple[float, float]]:
    """Read the points of a ring, without their third coordinates."""
    if not isinstance(points, list):
        raise ValueError(f"{quoted(str(points)[:40])} is no ring")
    return [(_coordinate(point[0]), _coordinate(point[1])) for point in points]


def _coordinate(value: Any) -> float:
    if isinstance(value, str):
        raise ValueError(f"the coordinate {quoted(value[:40])} is text")
    return number(value)


def _names(properties: Any) -> tuple[str, ...]:
    """Return the class names of an object, the whole one first; its own name is no class.

    QuPath writes a derived class as names ['Tumor', 'Positive'], or as 'Tumor: Positive'.
    """
    classification = properties.get("classification")
    if isinstance(classification, dict):
        parts = classification.get("names") or classification.get("name")
    else:
        parts = classification or properties.get("label")
    if isinstance(parts, list):
        parts = ": ".join(str(part) for part in parts)
    if parts in (None, ""):
        return ()
    levels = str(parts).split(": ")
    return tuple(": ".join(levels[:count]) for count in range(len(levels), 0, -1))


def write(path: Path, outlines: Sequence[tuple[Polygon, LabelClass]], slide: SlideGeometry) -> None:
    """Write polygons with their holes as QuPath annotations."""
    features = [
        {
            "type": "Feature",
            "geometry": area.__geo_interface__,
            "properties": {
                "objectType": "annotation",
                "classification": {"name": label.name, "color": list(label.color)},
            },
        }
        for area, label in outlines
        if label.index
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    if path.suffix.lower() == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8")
