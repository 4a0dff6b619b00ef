"""Small slide files of many formats, all of one picture."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from shared.arrays import UInt8

GLASS, PINK, VIOLET = (245, 245, 245), (225, 150, 190), (120, 70, 150)
BOXES = {"stroma": (64, 64, 256, 448), "tumor": (256, 64, 448, 448)}
"""Class → left, top, right and lower edge of its area, µm."""


def picture(mpp: float = 1.0, mpp_y: float | None = None, noise: float = 4) -> UInt8:
    """Draw 512 × 512 µm of tissue on glass, pink beside violet: uint8 RGB (height, width, 3)."""
    xs = (np.arange(round(512 / mpp)) + 0.5) * mpp
    ys = (np.arange(round(512 / (mpp_y or mpp))) + 0.5) * (mpp_y or mpp)
    image = np.full((len(ys), len(xs), 3), GLASS, np.float64)
    for color, (left, top, right, lower) in zip((PINK, VIOLET), BOXES.values(), strict=True):
        inside = ((ys >= top) & (ys < lower))[:, None] & ((xs >= left) & (xs < right))
        image[inside] = color
    rng = np.random.default_rng(0)
    return (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def ycbcr(image: UInt8) -> UInt8:
    """Convert RGB to the colours in which most slides hold their JPEG tiles."""
    return np.asarray(Image.fromarray(image).convert("YCbCr"))


def resolution(mpp: float, mpp_y: float | None = None) -> dict[str, Any]:
    """State a resolution in the tags of a TIFF."""
    return {"resolution": (1e4 / mpp, 1e4 / (mpp_y or mpp)), "resolutionunit": "CENTIMETER"}


def write_tiff(path: Path, image: UInt8, **options: Any) -> Path:
    """Write a tiled TIFF, unless the options say else."""
    options = {"photometric": "rgb", "tile": (128, 128), "metadata": None} | options
    tifffile.imwrite(path, image, **options)
    return path


def write_outlines(path: Path, mpp: float, mpp_y: float) -> Path:
    """Write the areas of `BOXES` as QuPath GeoJSON, in pixels."""
    features = []
    for name, (left, top, right, lower) in BOXES.items():
        xs, ys = (left / mpp, right / mpp), (top / mpp_y, lower / mpp_y)
        ring = [[xs[0], ys[0]], [xs[1], ys[0]], [xs[1], ys[1]], [xs[0], ys[1]], [xs[0], ys[0]]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"classification": {"name": name}},
            }
        )
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_ome(
    path: Path, image: UInt8, spacing: dict[str, Any], objective: float | None = None
) -> Path:
    """Write an OME-TIFF whose second level, at half the size, lies in a SubIFD."""
    with tifffile.TiffWriter(path, ome=True) as file:
        common = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
        file.write(image, subifds=1, metadata={"axes": "YXS"} | spacing, **common)
        half = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3))
        file.write(half.astype(np.uint8), subfiletype=1, metadata=None, **common)
    if objective is not None:
        xml = str(tifffile.tiffcomment(path)).replace(
            "<Image ",
            f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification='
            f'"{objective:g}"/></Instrument><Image ',
            1,
        )
        tifffile.tiffcomment(path, xml.encode())
    return path


def write_leica(path: Path, image: UInt8, x: int, y: int, width: int, height: int) -> Path:
    """Write a Leica SCN: `image`, at 0.5 µm/px, lies at (x, y) of a slide of width × height."""
    nm = 500

    def part(number: int, size: tuple[int, int], view: tuple[int, int, int, int]) -> str:
        return (
            f'<image name="image_{number}" uuid="{number}"><creationDate>2020-01-01T00:00:00Z'
            '</creationDate><device model="Leica SCN400" version="1"/>'
            f'<pixels sizeX="{size[0]}" sizeY="{size[1]}"><dimension sizeX="{size[0]}" '
            f'sizeY="{size[1]}" r="0" ifd="{number}"/></pixels><view sizeX="{view[2] * nm}" '
            f'sizeY="{view[3] * nm}" offsetX="{view[0] * nm}" offsetY="{view[1] * nm}" '
            'spacingZ="0"/><scanSettings><objectiveSettings><objective>20</objective>'
            "</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )

    small = np.full((height // 16, width // 16, 3), 245, np.uint8)
    whole = (0, 0, width, height)
    own = (x, y, image.shape[1], image.shape[0])
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" uuid="c" sizeX="{width * nm}" sizeY="{height * nm}"><barcode/>'
        + part(0, (small.shape[1], small.shape[0]), whole)
        + part(1, (image.shape[1], image.shape[0]), own)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        common = {"tile": (128, 128), "photometric": "rgb", "metadata": None} | resolution(0.5)
        file.write(small, description=xml, **common)
        file.write(image, **common)
    return path


def write_bomb(path: Path, side: int) -> Path:
    """Write a TIFF of side × side px whose tiles all share the same few bytes."""
    tile = 4096
    data = zlib.compress(bytes(tile * tile), 9)
    count = (-(-side // tile)) ** 2
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, count, 0),
        (325, 4, count, 0),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    pixels = start + 8 * count
    values = {324: start, 325: start + 4 * count}
    directory = b"".join(struct.pack("<HHII", *tag[:3], values.get(tag[0], tag[3])) for tag in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + directory
        + struct.pack("<I", 0) + struct.pack("<I", pixels) * count
        + struct.pack("<I", len(data)) * count + data
    )  # fmt: skip
    return path
