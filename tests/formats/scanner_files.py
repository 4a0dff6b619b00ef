"""Small slides in the formats of scanners that OpenSlide reads."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import tifffile
from PIL import Image

from shared.arrays import UInt8
from tests.formats.slide_files import halves, ycbcr

SIDE = 128


def encoded(image: UInt8, kind: str, **options: int) -> bytes:
    """Encode uint8 RGB as PNG or JPEG."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return data.getvalue()


def write_mirax(
    path: Path,
    image: UInt8,
    mpp: tuple[float, float],
    margin: int = 2,
    kind: str = "PNG",
    asides: Sequence[bytes] = (),
) -> Path:
    """Write a MIRAX slide of two levels, with `margin` empty tiles of 128 px on every side.

    `asides` are its preview, label and macro images as JPEG.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    across, down = image.shape[1] // SIDE + 2 * margin, image.shape[0] // SIDE + 2 * margin
    data, pages = [bytearray(b"head"), bytearray(b"head")], []
    for number, level in enumerate(halves(image, 2)):
        entries = b""
        for y in range(0, level.shape[0], SIDE):
            for x in range(0, level.shape[1], SIDE):
                tile = encoded(level[y : y + SIDE, x : x + SIDE], kind)
                at = [(v * 2**number) // SIDE + margin for v in (x, y)]
                entries += struct.pack(
                    "<4i", at[1] * across + at[0], len(data[number]), len(tile), number
                )
                data[number] += tile
        pages.append(struct.pack("<2i", len(entries) // 16, 0) + entries)
    slide_id = "0123456789ABCDEF0123456789ABCDEF"
    root = 5 + len(slide_id) + 8
    table = root + 4 * len(pages)
    aside = table + 8 * len(pages) + sum(map(len, pages))
    index = f"01.02{slide_id}".encode() + struct.pack("<2i", root, aside)
    heads, bodies = b"", b""
    body = table + 8 * len(pages)
    for number, page in enumerate(pages):
        index += struct.pack("<i", table + 8 * number)
        heads += struct.pack("<2i", 0, body + len(bodies))
        bodies += page
    first = aside + 4 * len(asides)
    index += heads + bodies
    index += b"".join(struct.pack("<i", first + 36 * at) for at in range(len(asides)))
    for at, picture in enumerate(asides):
        place = (len(data[0]), len(picture), 0)
        index += struct.pack("<9i", 0, first + 36 * at + 8, 1, 0, 0, 0, *place)
        data[0] += picture
    (folder / "Index.dat").write_bytes(index)
    for number, content in enumerate(data):
        (folder / f"Data{number:04}.dat").write_bytes(content)
    ini = f"""[GENERAL]
SLIDE_ID = {slide_id}
IMAGENUMBER_X = {across}
IMAGENUMBER_Y = {down}
OBJECTIVE_MAGNIFICATION = 20
CameraImageDivisionsPerSide = 1
[HIERARCHICAL]
HIER_COUNT = 1
NONHIER_COUNT = {int(bool(asides))}
INDEXFILE = Index.dat
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 2
HIER_0_VAL_0_SECTION = LEVEL_0
HIER_0_VAL_1_SECTION = LEVEL_1
[DATAFILE]
FILE_COUNT = 2
FILE_0 = Data0000.dat
FILE_1 = Data0001.dat
"""
    if asides:
        kinds = ("SlidePreview", "SlideBarcode", "SlideThumbnail")
        values = "".join(
            f"NONHIER_0_VAL_{at} = ScanDataLayer_{name}\nNONHIER_0_VAL_{at}_SECTION = S{at}\n"
            for at, name in enumerate(kinds)
        )
        layer = f"NONHIER_0_NAME = Scan data layer\nNONHIER_0_COUNT = 3\n{values}"
        ini = ini.replace("[DATAFILE]", f"{layer}[DATAFILE]")
        for at, name in enumerate(("PREVIEW", "BARCODE", "THUMBNAIL")):
            ini += f"[S{at}]\n{name}_IMAGE_TYPE = JPEG\n"
    for number in range(2):
        ini += f"""[LEVEL_{number}]
IMAGE_CONCAT_FACTOR = {number}
OVERLAP_X = 0
OVERLAP_Y = 0
MICROMETER_PER_PIXEL_X = {mpp[0] * 2**number}
MICROMETER_PER_PIXEL_Y = {mpp[1] * 2**number}
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {SIDE}
DIGITIZER_HEIGHT = {SIDE}
IMAGE_FORMAT = {kind}
"""
    (folder / "Slidedat.ini").write_bytes(b"\xef\xbb\xbf" + ini.encode())
    path.write_bytes(b"")
    return path


def write_vms(path: Path, image: UInt8, mpp: tuple[float, float]) -> Path:
    """Write a Hamamatsu VMS slide in two JPEG files side by side, with its map and macro image."""
    half = image.shape[1] // 2
    name = path.stem
    parts = {
        f"{name}.jpg": image[:, :half],
        f"{name}(1,0).jpg": image[:, half:],
        f"{name}_map.jpg": image[::8, ::8].copy(),
        f"{name}_macro.jpg": image[::8, ::8].copy(),
    }
    for file, part in parts.items():
        data = encoded(part, "JPEG", quality=95, subsampling=0, restart_marker_blocks=4)
        (path.parent / file).write_bytes(data)
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=2\nNoJpegRows=1\n"
        f"ImageFile={name}.jpg\nImageFile(1,0)={name}(1,0).jpg\nMapFile={name}_map.jpg\n"
        f"MacroImage={name}_macro.jpg\nSourceLens=20\n"
        f"PhysicalWidth={image.shape[1] * mpp[0] * 1000:.0f}\n"
        f"PhysicalHeight={image.shape[0] * mpp[1] * 1000:.0f}\nPhysicalMacroWidth=1000\n"
        "PhysicalMacroHeight=1000\nXOffsetFromSlideCentre=0\nYOffsetFromSlideCentre=0\n"
    )
    return path


def write_philips(path: Path, image: UInt8, mpp: tuple[float, float]) -> Path:
    """Write a Philips TIFF of two levels, whose widths are multiples of the tiles'."""

    levels = halves(image, 2)

    def attribute(name: str, kind: str, text: str) -> str:
        place = 'Group="0x0028" Element="0x0030"'
        return f'<Attribute Name="{name}" {place} PMSVR="{kind}">{text}</Attribute>'

    def array(name: str, items: str) -> str:
        return attribute(name, "IDataObjectArray", f"<Array>{items}</Array>")

    def spacing(factor: int) -> str:
        text = " ".join(f"&quot;{own * factor / 1000}&quot;" for own in reversed(mpp))
        return attribute("DICOM_PIXEL_SPACING", "IDoubleArray", text)

    parts = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(2**number)}</DataObject>'
        for number in range(len(levels))
    )
    scanned = (
        attribute("PIM_DP_IMAGE_TYPE", "IString", "WSI")
        + spacing(1)
        + array("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", parts)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "IString", "PHILIPS")
        + array(
            "PIM_DP_SCANNED_IMAGES",
            f'<DataObject ObjectType="DPScannedImage">{scanned}</DataObject>',
        )
        + "</DataObject>"
    )
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level, tile=(SIDE, SIDE), photometric="rgb", metadata=None,
                description=xml if number == 0 else "", software="Philips DP v1.0",
                subfiletype=1 if number else 0,
            )  # fmt: skip
    return path


def write_ventana(
    path: Path, image: UInt8, mpp: float, joined: tuple[str, ...] = ("RIGHT", "UP")
) -> Path:
    """Write a Ventana BIF of one area and two levels, which says how its tiles are joined."""
    columns, rows = image.shape[1] // SIDE, image.shape[0] // SIDE

    def number(column: int, row: int) -> int:
        """Return the number of a tile; they are counted from the lowest row, to and fro."""
        up = rows - 1 - row
        return up * columns + (columns - column if up % 2 else column + 1)

    joins = [((x, y), (x + 1, y), "RIGHT") for y in range(rows) for x in range(columns - 1)]
    joins += [((x, y), (x, y - 1), "UP") for y in range(1, rows) for x in range(columns)]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{direction}" '
        f'Tile1="{number(*first)}" Tile2="{number(*second)}" OverlapX="0" OverlapY="0"/>'
        for first, second, direction in joins
        if direction in joined
    )
    scan = f'<iScan Magnification="20" ScanRes="{mpp}" UnitNumber="1" Z-layers="1"/>'
    initial = f"<Metadata>{scan}</Metadata>"
    encode = (
        '<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" '
        f'NumRows="{rows}" NumCols="{columns}" Width="{SIDE}" Height="{SIDE}" Pos-X="0" '
        f'Pos-Y="0">{joints}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" '
        'OriginY="0"/></AoiOrigin></EncodeInfo>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:

        def write(pixels: UInt8, text: str, xmp: str) -> None:
            data = xmp.encode()
            file.write(
                ycbcr(pixels), tile=(SIDE, SIDE), photometric="ycbcr", compression="jpeg",
                compressionargs={"level": 95}, metadata=None, description=text,
                extratags=[(700, 1, len(data), data, True)],
            )  # fmt: skip

        write(image[::4, ::4].copy(), "Label Image", initial)
        for number, level in enumerate(halves(image, 2)):
            write(level, f"level={number} mag={20 / 2**number:g} quality=95", encode)
    return path
