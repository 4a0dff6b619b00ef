"""From the label map of a slide to an annotation in any format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio.features
from PIL import Image
from shapely.affinity import affine_transform, translate
from shapely.geometry import Polygon, shape

from services.ingest.annotations.formats import WRITERS
from services.ingest.annotations.outlines import SlideGeometry
from shared.arrays import UInt8
from shared.contracts.annotations import FORMATS, LabelFormat
from shared.contracts.base import Classes, LabelClass
from shared.contracts.ingest import LabelsOrigin
from shared.errors import InputError
from shared.imaging.codec import encode_palette_png
from shared.imaging.label_map import LABEL_TILE, write_label_map


def write_annotation(
    path: Path,
    kind: LabelFormat,
    labels: UInt8,
    mpp: float,
    classes: Classes,
    slide: SlideGeometry,
    origin: LabelsOrigin = "slide",
) -> None:
    """Write a label map as an annotation, which draws the same label map again.

    Args:
        path: file to write; its suffix must be one of the format's.
        kind: format of the file.
        labels: the label map, uint8 (h, w).
        mpp: its µm per pixel.
        classes: classes of the label map.
        slide: its slide.
        origin: corner that outlines count from, 'slide' or 'bounds', as in QuPath.

    Raises:
        InputError: the format is not written, has other suffixes, or the slide lacks what it
            needs.
    """
    row = next(row for row in FORMATS if row.name == kind)
    if not row.written:
        raise InputError(f"{row.doc} is not written: choose another format")
    if not path.name.lower().endswith(row.suffixes):
        raise InputError(f"{path.name}: the file of {row.doc} ends in {' or '.join(row.suffixes)}")
    if kind == "mask":
        _write_mask(path, labels, mpp, classes)
        return
    outlines = outlines_of(labels, mpp, classes, slide)
    if origin == "bounds":
        if slide.bounds is None:
            raise InputError("the slide states no scanned area to count from: use 'slide'")
        x, y = slide.bounds[:2]
        outlines = [(translate(area, -x, -y), label) for area, label in outlines]
    WRITERS[kind](path, outlines, slide)


def outlines_of(
    labels: UInt8, mpp: float, classes: Classes, slide: SlideGeometry
) -> list[tuple[Polygon, LabelClass]]:
    """Trace the areas of a label map along the edges of its pixels.

    Returns:
        Polygons with holes, in level-0 pixels, and their classes; the larger ones first, as
        they are without holes. Background is among them where other areas may enclose it.
    """
    to_slide = (mpp / slide.mpp, 0, 0, mpp / slide.mpp_y, 0, 0)
    outlines = []
    for geometry, value in rasterio.features.shapes(labels, connectivity=4):
        area = shape(geometry)
        left, top, right, bottom = area.bounds
        height, width = labels.shape
        if value == 0 and (left == 0 or top == 0 or right == width or bottom == height):
            continue
        outlines.append((affine_transform(area, to_slide), classes.items[int(value)]))
    return sorted(outlines, key=lambda item: -Polygon(item[0].exterior).area)


def _write_mask(path: Path, labels: UInt8, mpp: float, classes: Classes) -> None:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, labels)
    elif suffix == ".png":
        path.write_bytes(encode_palette_png(labels, classes.colors))
    elif suffix in {".bmp", ".webp"}:
        Image.fromarray(labels).save(path, lossless=True)
    elif suffix == ".gif":
        picture = Image.fromarray(labels)
        picture.putpalette([channel for color in classes.colors for channel in color])
        picture.save(path, optimize=False)  # which would change the indices of the classes
    else:
        height, width = labels.shape
        strips = (labels[top : top + LABEL_TILE] for top in range(0, height, LABEL_TILE))
        write_label_map(path, strips, width, height, mpp)
