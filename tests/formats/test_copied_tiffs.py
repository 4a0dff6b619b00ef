"""Copies of TIFFs whose lengths, names or order lie about what is a level."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from shared.errors import InputError
from shared.imaging.redaction import redactions
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
