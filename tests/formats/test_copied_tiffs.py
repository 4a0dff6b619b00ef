"""Copies of TIFFs whose lengths, names or order lie about what is a level."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.errors import InputError
from shared.imaging.redaction import redactions
from shared.imaging.slide import Slide
from tests.formats.slide_files import picture

LABEL = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
COMMON: dict[str, Any] = {"photometric": "rgb", "metadata": None}


def copied(path: Path) -> bytes:
    """Return the bytes of a file's copy."""
    data = bytearray(path.read_bytes())
    for offset, new in redactions(path):
        data[offset : offset + len(new)] = new
    return bytes(data)


def lengthened(path: Path, by: int) -> Path:
    """Let the last piece of a file's first image be longer than it is."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags["StripByteCounts" if not file.pages.first.is_tiled else 325]
        at, kind, count = tag.valueoffset, "<H" if tag.dtype == 3 else "<I", tag.count
        value = np.atleast_1d(tag.value)[-1]
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, at + (count - 1) * struct.calcsize(kind), int(value) + by)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("by", [64 * 64 * 3, 1 << 30])
def test_a_strip_ends_with_its_pixels(by: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(2), **COMMON, rowsperstrip=200)
    path.write_bytes(path.read_bytes() + LABEL.tobytes() + b"DOE^JANE")
    data = copied(lengthened(path, by))
    assert b"DOE^JANE" not in data
    assert LABEL.tobytes()[:200] not in data
    path.write_bytes(data)
    assert np.array_equal(tifffile.imread(path), picture(2))


def test_a_jpeg_tile_ends_with_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(4), **COMMON, tile=(64, 64), compression="jpeg")
    before = tifffile.imread(path)
    label = io.BytesIO()
    Image.fromarray(LABEL).save(label, "JPEG")
    path.write_bytes(path.read_bytes() + label.getvalue())
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[-1] + file.pages.first.databytecounts[-1]
    data = copied(lengthened(path, path.stat().st_size - start))
    assert label.getvalue()[20:] not in data
    path.write_bytes(data)
    assert np.array_equal(tifffile.imread(path), before)


def test_a_level_has_no_pixels_of_another_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(picture(4), **COMMON, tile=(64, 64), compression="zlib")
        file.write(LABEL[:48], **COMMON, rowsperstrip=48)
    lengthened(path, 2000)
    with pytest.raises(InputError, match="overlap those of another image"):
        redactions(path)


APERIO = "Aperio Image Library v11.2.1 \r\n256x256 (64x64) RAW|AppMag = 20|MPP = 0.5"


def stripes(side: int) -> Any:
    """Draw a label of lines on white, as a text has them: uint8 RGB (side, side, 3)."""
    label = np.full((side, side, 3), 235, np.uint8)
    label[8::16, 4:-4:3] = label[9::16, 4:-4:3] = 20
    return label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Aperio Image Library v11\r\nEtiquette 128x128", stripes(128)),
        ("Aperio Image Library v11\r\n128x128", np.tile(LABEL, (2, 2, 1))),
        ("Aperio Image Library v11 " + "x" * 200 + " label", picture(4)),
        ("Aperio Image Library v11\r\n128x128", picture(4)[::-1, ::-1].copy()),
    ],
)
def test_a_level_is_the_main_image_made_smaller(text: str, label: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        file.write(picture(2), **COMMON, tile=(64, 64), description=APERIO)
        file.write(label, **COMMON, tile=(64, 64), description=text)
    with pytest.raises(InputError, match="label"):
        redactions(path)


def test_a_true_level_stays_however_it_was_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    noise = np.random.default_rng(2).normal(0, 400, (512, 512, 1))
    main = (picture() + cv2.GaussianBlur(noise, (0, 0), 4)[..., None]).clip(1, 255)
    smaller = [main, main[::2, ::2], cv2.resize(main, (64, 64), interpolation=cv2.INTER_AREA)]
    with tifffile.TiffWriter(path) as file:
        for level in smaller:
            pixels = np.ascontiguousarray(level, np.uint8)
            file.write(pixels, **COMMON, tile=(64, 64), description=APERIO)
    path.write_bytes(copied(path))
    with tifffile.TiffFile(path) as file:
        for page, level in zip(file.pages, smaller, strict=True):
            assert np.array_equal(page.asarray(), level.astype(np.uint8))


def test_pages_that_are_no_levels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(picture(8), **COMMON)
        file.write(LABEL, **COMMON, extratags=[(285, 2, 0, "Label", True)])
    with pytest.raises(InputError, match="label"):
        redactions(path)
    path = tmp_path / "a.ome.tif"
    planes = np.stack([picture(8), LABEL])
    tifffile.imwrite(path, planes, photometric="rgb", metadata={"axes": "ZYXS"}, ome=True)
    with pytest.raises(InputError, match="axes ZYXS"):
        redactions(path)


@pytest.mark.parametrize("name", ["label image of DOE^JANE", "Macro S24-1187", "SlideImage"])
def test_a_copied_ome_tiff_is_read_also_with_a_large_label_or_macro_image(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "a.ome.tif"
    stated = {"Name": "DOE^JANE", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(picture(2), photometric="rgb", metadata=stated)
        file.write(LABEL.repeat(2, 0).repeat(3, 1), photometric="rgb", metadata={"Name": name})
    data = copied(path)
    assert not any(text in data for text in (b"DOE^JANE", b"S24-1187", LABEL[:, :9].tobytes()))
    path.write_bytes(data)
    with Slide.open(path) as slide:
        assert np.array_equal(slide.read(0, 0, (256, 256), 0.5), picture(2))


def test_numbers_of_a_tiff_are_those_of_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    words = np.frombuffer(b"DOE^JANE" * 3, np.uint16).tolist()
    tags = [(code, 3, len(words), words, True) for code in (301, 318, 320, 340, 529, 65426)]
    tifffile.imwrite(path, picture(8), **COMMON, extratags=tags)
    assert path.read_bytes().count(b"DOE^JANE") == 18
    assert b"DOE^JANE" not in copied(path)


def test_tables_of_a_jpeg_have_no_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tables = b"\xff\xd8\xff\xfe\0\x0aDOE^JANE\xff\xd9"
    tifffile.imwrite(path, picture(8), **COMMON, extratags=[(347, 7, len(tables), tables, True)])
    assert b"DOE^JANE" not in copied(path)
