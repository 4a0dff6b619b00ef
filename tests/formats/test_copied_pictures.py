"""Copies of plain images have their pixels, and no text in places that decoders pass over."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.imaging.redaction import redactions
from tests.formats.slide_files import picture

TEXT = b"DOE^JANE"


def encoded(kind: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(8)).convert(mode).save(stream, kind)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(mode: str) -> bytes:
    data = encoded("PNG", mode)
    pixels, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    names = [b"bKGD", b"cHRM", b"sBIT", *([b"PLTE"] if mode == "RGB" else [])]
    before = b"".join(chunk(name, TEXT * 12) for name in names)
    after = chunk(b"gAMA", TEXT) + chunk(b"IDAT", TEXT) + chunk(b"pHYs", TEXT + b"\0")
    after += chunk(b"pHYs", TEXT + b"\0")
    return data[:pixels] + before + data[pixels:end] + after + data[end:]


def bmp(mode: str) -> bytes:
    data = bytearray(encoded("BMP", mode))
    (start,) = struct.unpack_from("<I", data, 10)
    data[start:start] = TEXT * 3
    struct.pack_into("<I", data, 10, start + len(TEXT) * 3)
    return bytes(data)


def jpeg(mode: str) -> bytes:
    data = encoded("JPEG", mode)
    segments = [bytes([0xFF, mark, 0, 10]) + TEXT for mark in (0xFE, 0xE5, 0xEE)]
    return data[:2] + b"".join(segments) + data[2:] + TEXT


def webp(mode: str) -> bytes:
    data = bytearray(encoded("WEBP", mode)) + b"VP8 " + struct.pack("<I", 8) + TEXT
    struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


WRITERS: dict[str, Callable[[str], bytes]] = {"png": png, "bmp": bmp, "jpeg": jpeg, "webp": webp}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("png", "RGB"), ("png", "P"), ("png", "LA"), ("bmp", "RGB"), ("bmp", "P"), ("bmp", "RGBA"),
     ("bmp", "L"), ("jpeg", "RGB"), ("jpeg", "CMYK"), ("webp", "RGB")],
)  # fmt: skip
def test_places_that_decoders_pass_over_are_empty(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(WRITERS[kind](mode))
    before = np.asarray(Image.open(io.BytesIO(encoded(kind, mode))))
    data = bytearray(path.read_bytes())
    assert TEXT in data
    for offset, new in redactions(path):
        data[offset : offset + len(new)] = new
    assert TEXT not in data
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), before)
