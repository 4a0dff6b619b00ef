"""Small slide files of many formats, all of one picture, and their ingest."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from services.ingest.stage import IngestStage
from shared.arrays import UInt8
from shared.contracts.base import Classes
from shared.contracts.ingest import IngestRequest, PatchGrid, SlideSource
from shared.contracts.regions import RegionRule
from shared.jobs import JobStatus, Ledger, run_job
from shared.storage import DirectoryStore

GLASS, PINK, VIOLET = (245, 245, 245), (225, 150, 190), (120, 70, 150)
BOXES = {"stroma": (64, 64, 256, 448), "tumor": (256, 64, 448, 448)}
"""Class → left, top, right and lower edge of its area, µm."""

CLASSES = Classes.of("stroma", "tumor")
GRID = PatchGrid(size=64, mpp=1.0, stride=64)


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


def halves(image: UInt8, count: int) -> list[UInt8]:
    """Return an image and its averages at a half, a quarter … of its size: `count` in all."""
    levels = [image]
    for _ in range(count - 1):
        height, width = (side // 2 * 2 for side in levels[-1].shape[:2])
        blocks = levels[-1][:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
        levels.append(blocks.mean((1, 3)).astype(np.uint8))
    return levels


def write_zarr(
    path: Path,
    image: UInt8,
    mpp: tuple[float, float] = (0.5, 0.5),
    *,
    version: str = "0.5",
    axes: str = "tczyx",
    unit: str | None = "micrometer",
    levels: int = 3,
    **options: Any,
) -> Path:
    """Write OME-Zarr as ome-zarr-py and bioformats2raw do, with chunks of 128 × 128 pixels."""
    import zarr

    if image.ndim == 2:
        image = image[..., None]
    root = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for number, level in enumerate(halves(image, levels)):
        order = [{"y": 0, "x": 1, "c": 2}.get(axis) for axis in axes]
        kept = level.transpose([at for at in order if at is not None])
        chunk = [{"c": level.shape[2], "y": 128, "x": 128}.get(axis, 1) for axis in axes]
        array = root.create_array(
            str(number),
            shape=[1 if at is None else level.shape[at] for at in order],
            chunks=chunk,
            dtype=level.dtype,
            **(
                {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == "0.4" else {}
            ),
            **options,
        )
        array[:] = kept.reshape(array.shape)
        scale = [{"x": mpp[0], "y": mpp[1]}.get(axis, 1.0) for axis in axes]
        scale = [
            s * (2**number if axis in "xy" else 1) for s, axis in zip(scale, axes, strict=True)
        ]
        datasets.append(
            {
                "path": str(number),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    kinds = {"t": "time", "c": "channel"}
    stated = [
        {"name": axis, "type": kinds.get(axis, "space")}
        | ({"unit": unit} if unit and axis in "zyx" else {})
        for axis in axes
    ]
    image_facts = {"multiscales": [{"axes": stated, "datasets": datasets, "name": "a"}]}
    if version == "0.4":
        image_facts["multiscales"][0]["version"] = version
        root.attrs.update(image_facts)
    else:
        root.attrs["ome"] = {"version": version} | image_facts
    return path


def write_czi(path: Path, image: UInt8, mpp: tuple[float, float], corner: tuple[int, int]) -> Path:
    """Write a CZI in tiles of 128 × 128 px from a corner on, with a level at half the size."""
    from pylibCZIrw.czi import create_czi

    whole, half = halves(image, 2)
    with create_czi(str(path), compression_options="zstd1:ExplicitLevel=1") as file:
        for top in range(0, whole.shape[0], 128):
            for left in range(0, whole.shape[1], 128):
                tile = np.ascontiguousarray(whole[top : top + 128, left : left + 128, ::-1])
                file.write(tile, location=(corner[0] + left, corner[1] + top))
        file.write(np.ascontiguousarray(half[..., ::-1]), location=corner)
        file.write_metadata("a", scale_x=mpp[0] * 1e-6, scale_y=mpp[1] * 1e-6)
    _mark_pyramid(path, (half.shape[1], half.shape[0]))
    return path


def _mark_pyramid(path: Path, stored: tuple[int, int]) -> None:
    """Say of the tile of a CZI that has the size `stored` that it shows twice as many pixels."""
    data = bytearray(path.read_bytes())
    at = data.find(b"DV")
    while at >= 0:
        count = struct.unpack_from("<i", data, at + 28)[0]
        if 0 < count < 20:
            places = range(at + 32, at + 32 + 20 * count, 20)
            entries = {bytes(data[e : e + 4]).rstrip(b"\0"): e for e in places}
            sizes = [struct.unpack_from("<i", data, entries[a] + 8)[0] for a in (b"X", b"Y")]
            if tuple(sizes) == stored:
                data[at + 22] = 2
                for axis, size in zip((b"X", b"Y"), stored, strict=True):
                    struct.pack_into("<i", data, entries[axis] + 8, 2 * size)
        at = data.find(b"DV", at + 2)
    path.write_bytes(data)


def ingest(store: DirectoryStore, path: Path, labels: Path | None = None, **more: Any) -> JobStatus:
    """Ingest a file as slide `s` of cohort `c`; `more` is `mpp` and fields of the request."""
    source = {key: more.pop(key) for key in ("mpp",) if key in more}
    fields = {"patches": GRID, "regions": RegionRule(size=128, mpp=1.0), "classes": CLASSES} | more
    item = SlideSource(
        slide="s", source=str(path), labels=str(labels) if labels else None, **source
    )
    ledger = Ledger(store)
    return run_job(
        ledger,
        IngestStage(),
        ledger.submit(IngestRequest(cohort="c", slides=(item,), **fields), replace=True),
    )


def ring_of(path: Path) -> Path:
    """Let the first directory of a TIFF say that it follows itself."""
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    path.write_bytes(data)
    return path
