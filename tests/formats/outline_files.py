"""Outlines, and the GeoJSON files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
