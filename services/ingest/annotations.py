"""Turns annotations into label maps: ASAP XML, QuPath GeoJSON, PANDA masks, indexed images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import rasterio
import rasterio.features
import tifffile
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse
from PIL import Image
from shapely import STRtree, box, get_coordinates, make_valid
from shapely.affinity import scale, translate
from shapely.errors import ShapelyError
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry

from shared.arrays import Int64, UInt8
from shared.contracts.annotations import LabelFormat, guess_format, known_formats
from shared.contracts.base import Classes
from shared.errors import InputError
from shared.imaging.label_map import LABEL_TILE

PANDA_NAMES: dict[str, dict[int, str]] = {
    "panda-radboud": {
        1: "stroma", 2: "benign", 3: "gleason 3", 4: "gleason 4", 5: "gleason 5",
    },
    "panda-karolinska": {1: "benign", 2: "cancer"},
}  # fmt: skip
"""Format → pixel value → name of the tissue, in the masks of the PANDA challenge."""

ASPECT_TOLERANCE = 0.01
"""Relative difference of aspect ratios up to which a label image fits its slide."""


@dataclass(frozen=True)
class Outline:
    """An annotated area, in level-0 pixels, with the name that the annotation gives it."""

    name: str
    area: BaseGeometry


def format_of(path: Path) -> LabelFormat:
    """Guess an annotation's format by its file name. Raises `InputError` if no format fits."""
    kind = guess_format(path)
    if kind is None:
        raise InputError(f"{path.name}: labels must be {known_formats()}")
    return kind


def read_asap(path: Path) -> list[Outline]:
    """Read an ASAP XML file, the format of Camelyon16.

    Polygons have no holes, and a later polygon covers earlier ones.

    Raises:
        InputError: the file is not ASAP XML, or a polygon is malformed.
    """
    try:
        root = cast(Element, parse(path).getroot())
    except (ParseError, DefusedXmlException) as error:
        raise InputError(f"{path.name} is not well-formed XML: {error}") from error
    outlines = []
    for number, item in enumerate(root.iter("Annotation")):
        try:
            points = [
                (float(point.attrib["X"]), float(point.attrib["Y"]), int(point.attrib["Order"]))
                for point in item.iter("Coordinate")
            ]
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path.name}: annotation {number} has a malformed coordinate ({error})"
            ) from error
        if len(points) < 3:
            continue  # a dot or a ruler
        ring = [(x, y) for x, y, _ in sorted(points, key=lambda point: point[2])]
        name = item.get("PartOfGroup") or "None"
        outlines.append(Outline(name, make_valid(Polygon(ring))))
    if root.tag != "ASAP_Annotations":
        raise InputError(f"{path.name} is not an ASAP annotation: its root is <{root.tag}>")
    return outlines


def read_geojson(path: Path) -> list[Outline]:
    """Read a GeoJSON file of QuPath: a FeatureCollection, a list of features, or one feature.

    Raises:
        InputError: the file is not GeoJSON, or a geometry is malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path.name} is not JSON: {error}") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise InputError(f"{path.name} holds no GeoJSON features")
    outlines = []
    for number, feature in enumerate(features):
        try:
            geometry = feature["geometry"]
            if geometry is None or geometry["type"] not in {"Polygon", "MultiPolygon"}:
                continue  # points and lines have no area
            area = make_valid(shape(_flat(geometry)))
        except (KeyError, TypeError, ValueError, ShapelyError) as error:
            raise InputError(f"{path.name}: feature {number} is malformed ({error})") from error
        outlines.append(Outline(_classification(feature), area))
    return outlines


OUTLINE_READERS: dict[LabelFormat, Callable[[Path], list[Outline]]] = {
    "asap": read_asap,
    "geojson": read_geojson,
}
"""Readers of the formats that hold outlines; the other formats are label images."""


def settle(outlines: list[Outline]) -> list[Outline]:
    """Convert outlines that were traced along pixel centres to continuous coordinates.

    Contour tracers such as OpenCV's return the indices of boundary pixels: all vertices are
    integers, and some edges are diagonal. Such outlines are shifted by half a pixel, to the
    centres of these pixels, and slightly widened to include them. Outlines along pixel edges
    (axis-parallel) and drawn outlines (fractions) are returned unchanged.
    """
    points = [get_coordinates(outline.area) for outline in outlines]
    whole = all((part == part.round()).all() for part in points)
    steps = (np.abs(np.diff(part, axis=0)) for part in points)
    diagonal = any(((step == 1).all(1)).any() for step in steps)
    if not (whole and diagonal):
        return outlines
    return [
        Outline(outline.name, translate(outline.area, 0.5, 0.5).buffer(0.01))
        for outline in outlines
    ]


def _flat(geometry: dict[str, Any]) -> dict[str, Any]:
    """Drop the third coordinate of every point of a GeoJSON geometry."""

    def flat(value: Any) -> Any:
        if isinstance(value[0], int | float):
            return value[:2]
        return [flat(part) for part in value]

    return {"type": geometry["type"], "coordinates": flat(geometry["coordinates"])}


def _classification(feature: dict[str, Any]) -> str:
    """Return the class name of a GeoJSON feature, or the string 'None'."""
    properties = feature.get("properties") or {}
    label = properties.get("classification") or properties.get("label") or properties.get("name")
    name = label.get("name") if isinstance(label, dict) else label
    return str(name) if name else "None"


def name_to_index(
    names: Sequence[str], classes: Classes, label_names: dict[str, str], path: Path
) -> dict[str, int]:
    """Map annotation names to class indices.

    `label_names` (annotation name → class name) is applied first. All comparisons ignore case,
    and treat `_` and `-` as spaces.

    Raises:
        InputError: a name belongs to no class.
    """
    known = _by_plain_name(classes)
    renamed = {_plain(key): _plain(value) for key, value in label_names.items()}
    wanted = {name: renamed.get(_plain(name), _plain(name)) for name in set(names)}
    unknown = sorted(name for name, target in wanted.items() if target not in known)
    if unknown:
        raise InputError(
            f"{path.name} has labels that are not among the classes {classes.names}: {unknown}. "
            "Add them to the classes, or map them with label_names"
        )
    return {name: known[target] for name, target in wanted.items()}


def _plain(name: str) -> str:
    """Return a name in lower case, with spaces for `_` and `-`."""
    return name.lower().replace("_", " ").replace("-", " ")


def _by_plain_name(classes: Classes) -> dict[str, int]:
    return {_plain(item.name): item.index for item in classes.items}


def rasterize(
    outlines: Sequence[tuple[BaseGeometry, int]],
    width: int,
    height: int,
    factors: tuple[float, float],
) -> Iterator[UInt8]:
    """Paint outlines into a label map, a later one over earlier ones.

    A pixel is painted if its centre is inside the outline.

    Args:
        outlines: areas in level-0 pixels, with their class indices.
        width, height: size of the label map, pixels.
        factors: number of level-0 pixels per pixel of the label map, along x and y.

    Yields:
        Strips of `LABEL_TILE` rows (the last may be shorter), uint8 (rows, width).
    """
    areas = [scale(area, 1 / factors[0], 1 / factors[1], origin=(0, 0)) for area, _ in outlines]
    tree = STRtree(areas)
    for top in range(0, height, LABEL_TILE):
        rows = min(LABEL_TILE, height - top)
        here = sorted(tree.query(box(-1, top - 1, width + 1, top + rows + 1)).tolist())
        shapes = [(areas[i], outlines[i][1]) for i in here if not areas[i].is_empty]
        if not shapes:
            yield np.zeros((rows, width), np.uint8)
            continue
        yield rasterio.features.rasterize(
            shapes,
            out_shape=(rows, width),
            transform=rasterio.Affine.translation(0, top),
            dtype=np.uint8,
        )


def read_indexed(path: Path) -> UInt8:
    """Read a label image: PNG, TIFF or npy, whose pixel values are labels.

    The value is the palette index of a palette PNG, and the red channel of a colour image.

    Returns:
        uint8 (height, width).

    Raises:
        InputError: the file cannot be read, or has values that are not integers from 0 to 255.
    """
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() == ".png":
            with Image.open(path) as image:
                array = np.asarray(
                    image if image.mode in {"P", "L", "I;16", "I"} else image.convert("RGB")
                )
        else:
            # Only the first page: the series of an OME-TIFF may name other files.
            with tifffile.TiffFile(path, _multifile=False) as tiff:
                array = tiff.pages[0].asarray()
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InputError(f"label image {path.name} cannot be read: {error}") from error
    if array.ndim == 3:
        array = array[..., 0]
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"label image {path.name} must be one channel of integers")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise InputError(f"label image {path.name} has values beyond 0…255: {array.max()}")
    return np.asarray(array, np.uint8)


def lookup(
    values: Int64,
    classes: Classes,
    label_names: dict[str, str],
    known: dict[int, str],
    path: Path,
) -> UInt8:
    """Make a table from pixel value to class index.

    The name of a value is taken from `label_names`, else from the names of the format. A value
    without a name is itself the class index, unless the format has names. 0 is background,
    unless `label_names` names it.

    Args:
        values: pixel values that occur in the image.
        classes: classes of the label map.
        label_names: pixel value as text → class name.
        known: pixel value → name in the format; empty if the format has no names.
        path: label image, for the error message.

    Returns:
        uint8 (256,).

    Raises:
        InputError: a value belongs to no class.
    """
    plain = _by_plain_name(classes)
    table, wrong = np.zeros(256, np.uint8), []
    for value in values.tolist():
        if value == 0 and "0" not in label_names:
            continue
        name = label_names.get(str(value), known.get(value))
        if name is not None and _plain(name) in plain:
            table[value] = plain[_plain(name)]
        elif name is None and not known and value < len(classes):
            table[value] = value
        else:
            wrong.append(value if name is None else f"{value} ({name})")
    if wrong:
        raise InputError(
            f"{path.name} has labels outside the classes {classes.names}: {wrong}. Add them to the "
            "classes, or map them with label_names"
        )
    return table


def label_strips(
    path: Path,
    kind: LabelFormat,
    classes: Classes,
    label_names: dict[str, str],
    slide_size: tuple[int, int],
    map_size: tuple[int, int],
) -> Iterator[UInt8]:
    """Turn an annotation into strips of a slide's label map.

    All checks run in this call, before the first strip is read.

    Args:
        path: file of the annotation.
        kind: format of the annotation.
        classes: classes of the label map.
        label_names: annotation name, or pixel value as text → class name.
        slide_size: width and height of the slide, level-0 pixels.
        map_size: width and height of the label map, pixels.

    Returns:
        Strips of `LABEL_TILE` rows, uint8 (rows, width).

    Raises:
        InputError: the annotation is missing or malformed, does not fit the slide, or has labels
            that belong to no class.
    """
    if not path.is_file():
        raise InputError(f"annotation {path} does not exist")
    width, height = map_size
    if kind in OUTLINE_READERS:
        outlines = settle(OUTLINE_READERS[kind](path))
        indices = name_to_index([o.name for o in outlines], classes, label_names, path)
        painted = [(outline.area, indices[outline.name]) for outline in outlines]
        return rasterize(painted, width, height, (slide_size[0] / width, slide_size[1] / height))
    image = read_indexed(path)
    _check_shape(path, image, slide_size)
    present = np.flatnonzero(np.bincount(image.ravel(), minlength=256))
    table = lookup(present, classes, label_names, PANDA_NAMES.get(kind, {}), path)
    return _resampled(image, table, width, height)


def _resampled(image: UInt8, table: UInt8, width: int, height: int) -> Iterator[UInt8]:
    """Resize a label image to width × height by nearest neighbour, and yield strips of classes."""
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
    for top in range(0, height, LABEL_TILE):
        rows = np.arange(top, min(top + LABEL_TILE, height))
        picked = ((rows + 0.5) * image.shape[0] / height).astype(int)
        yield table[image[picked][:, columns]]


def _check_shape(path: Path, image: UInt8, slide_size: tuple[int, int]) -> None:
    """Raise `InputError` if a label image is larger than its slide, or has another aspect ratio."""
    ratios = (slide_size[0] / image.shape[1], slide_size[1] / image.shape[0])
    slack = ASPECT_TOLERANCE + 1.0 / min(image.shape)
    if min(ratios) < 0.99 or abs(ratios[0] / ratios[1] - 1) > slack:
        raise InputError(
            f"label image {path.name} is {image.shape[1]}×{image.shape[0]} px, which does not fit "
            f"its slide of {slide_size[0]}×{slide_size[1]} px: it has another aspect ratio, or is "
            "larger"
        )
