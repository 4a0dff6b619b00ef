"""Writing a phantom slide and its ground truth as files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import rasterio.features
import tifffile

from shared.arrays import UInt8
from shared.phantom.banks import PHANTOM_CLASSES
from shared.phantom.glands import SCALE
from shared.phantom.slide import BLOCK, PhantomSlide
from shared.phantom.texture import MPP

FILE_TILE = 512
"""Side of the tiles of the TIFF files, pixels."""


@dataclass(frozen=True)
class PhantomFiles:
    """Paths of a phantom slide, its label map, and its annotations as GeoJSON and ASAP XML."""

    slide: Path
    mask: Path
    geojson: Path
    xml: Path


def write_phantom(
    folder: Path,
    name: str,
    width: int,
    height: int,
    seed: int,
    threads: int = 2,
    textures: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomFiles:
    """Write a phantom slide and its ground truth; the same arguments give the same bytes.

    Args:
        folder: gets `<name>.tiff`, `<name>_mask.tiff`, `<name>.geojson` and `<name>.xml`.
        name: stem of the file names.
        width, height: level-0 pixels of 0.5 µm; multiples of 4.
        seed: seed of the tissue and the staining.
        threads: number of blocks that are rendered in parallel.
        textures: seed of the textures that slides share; None: `seed`.
        progress: called after each row of blocks, with the number of finished rows and of all.
    """
    slide = PhantomSlide(width, height, seed, textures)
    folder.mkdir(parents=True, exist_ok=True)
    files = PhantomFiles(
        folder / f"{name}.tiff",
        folder / f"{name}_mask.tiff",
        folder / f"{name}.geojson",
        folder / f"{name}.xml",
    )
    step = BLOCK // SCALE
    labels = np.zeros((slide.rows, slide.columns), np.uint8)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".phantom-") as scratch,
        ThreadPoolExecutor(threads) as pool,
    ):
        small = np.memmap(
            Path(scratch) / "level", np.uint8, "w+", shape=(slide.rows, slide.columns, 3)
        )

        def block(top: int, left: int) -> UInt8:
            rows, columns = min(step, slide.rows - top), min(step, slide.columns - left)
            labels[top : top + rows, left : left + columns] = slide.labels(top, left, rows, columns)
            image = slide.render(top, left, rows, columns)
            small[top : top + rows, left : left + columns] = cv2.resize(
                image, (columns, rows), interpolation=cv2.INTER_AREA
            )
            return image

        def tiles() -> Iterator[UInt8]:
            tops = range(0, slide.rows, step)
            for number, top in enumerate(tops):
                blocks = pool.map(
                    lambda left, top=top: block(top, left), range(0, slide.columns, step)
                )
                band = np.concatenate(list(blocks), 1)
                for y in range(0, band.shape[0], FILE_TILE):
                    for x in range(0, band.shape[1], FILE_TILE):
                        yield _whole_tile(band[y : y + FILE_TILE, x : x + FILE_TILE])
                if progress is not None:
                    progress(number + 1, len(tops))

        options: dict[str, Any] = {
            "tile": (FILE_TILE, FILE_TILE),
            "photometric": "rgb",
            "compression": "jpeg",
            "compressionargs": {"level": 92},
            "resolutionunit": "CENTIMETER",
            "metadata": None,
        }
        large = width * height > 2**30
        with tifffile.TiffWriter(files.slide, bigtiff=large) as tiff:
            tiff.write(
                tiles(), shape=(height, width, 3), dtype=np.uint8,
                resolution=(1e4 / MPP, 1e4 / MPP), description=f"phantom seed={seed}", **options,
            )  # fmt: skip
            level, factor = np.asarray(small), SCALE
            while True:
                per_cm = 1e4 / (MPP * factor)
                tiff.write(level, resolution=(per_cm, per_cm), subfiletype=1, **options)
                if max(level.shape[:2]) <= 2 * FILE_TILE:
                    break
                size = (max(1, level.shape[1] // 4), max(1, level.shape[0] // 4))
                level, factor = cv2.resize(level, size, interpolation=cv2.INTER_AREA), factor * 4
    _write_mask(files.mask, labels)
    _write_outlines(files, labels)
    return files


def _whole_tile(tile: UInt8) -> UInt8:
    """Pad a tile at the slide's right or lower edge to its full size."""
    missing = (FILE_TILE - tile.shape[0], FILE_TILE - tile.shape[1])
    if not any(missing):
        return tile
    return np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _write_mask(path: Path, labels: UInt8) -> None:
    """Write the label raster as a tiled TIFF at its own resolution."""
    per_cm = 1e4 / (MPP * SCALE)
    tifffile.imwrite(
        path, labels, tile=(FILE_TILE, FILE_TILE), compression="zlib", photometric="minisblack",
        resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", metadata=None,
        bigtiff=labels.size > 2**31,
    )  # fmt: skip


def _write_outlines(files: PhantomFiles, labels: UInt8) -> None:
    """Write the exact outlines of the label raster as GeoJSON, and as ASAP XML.

    ASAP polygons have no holes. They are ordered from the largest area to the smallest, so
    that the tissue in a hole is painted over the polygon around it.
    """
    transform = rasterio.Affine.scale(SCALE)
    outlines = [
        (int(value), shape["coordinates"])
        for shape, value in rasterio.features.shapes(labels, connectivity=4, transform=transform)
    ]
    names, colors = PHANTOM_CLASSES.names, PHANTOM_CLASSES.colors
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": names[value], "color": colors[value]},
            },
        }
        for value, rings in outlines
        if value
    ]
    files.geojson.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    ordered = sorted(outlines, key=lambda item: -_area(item[1][0]))
    for number, (value, rings) in enumerate(ordered):
        color = "#{:02X}{:02X}{:02X}".format(*colors[value])
        item = ET.SubElement(
            annotations, "Annotation", Name=f"Annotation {number}", Type="Polygon",
            PartOfGroup=names[value], Color=color,
        )  # fmt: skip
        coordinates = ET.SubElement(item, "Coordinates")
        for order, (x, y) in enumerate(rings[0][:-1]):
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:g}", Y=f"{y:g}")
    groups = ET.SubElement(root, "AnnotationGroups")
    for name, color_rgb in zip(names, colors, strict=True):
        color = "#{:02X}{:02X}{:02X}".format(*color_rgb)
        ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=color)
    ET.ElementTree(root).write(files.xml, encoding="utf-8", xml_declaration=True)


def _area(ring: list[tuple[float, float]]) -> float:
    """Return the area of a closed ring by the shoelace formula."""
    points = np.asarray(ring)
    x, y = points[:, 0], points[:, 1]
    return float(abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)
