"""Copies of synthetic pictures say that they are synthetic, and nothing else of their XMP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from shared.arrays import UInt8
from shared.imaging.codec import encode_png
from shared.imaging.marks import (
    DC,
    HEAD,
    IPTC,
    PARTLY,
    RDF,
    SOURCE_TYPES,
    UNNAMED,
    Mark,
    mark_of,
    mark_png,
    mark_xmp,
)
from shared.imaging.pyramid import Deflate, Jpeg, TileCodec, write_pyramid
from shared.imaging.redaction import apply, redactions
from tests.formats.slide_files import picture
from tests.formats.test_copied_pictures import chunk

MARK = Mark("toy/1", "d", "00000003")
TEXT = b"DOE^JANE"

FOREIGN = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"><rdf:Description '
    f'rdf:about="DOE^JANE" xmlns:Iptc4xmpExt="{IPTC}" xmlns:dc="{DC}" dc:identifier="DOE^JANE" '
    'Iptc4xmpExt:AISystemUsed="DOE^JANE" Iptc4xmpExt:AISystemVersionUsed="DOE^JANE">'
    "<Iptc4xmpExt:DigitalSourceType>"
    f"{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"
    "<dc:creator>DOE^JANE</dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"
).encode()
"""A mark by another program, with a name in each place that holds one."""

SHORT = (
    f'<r:RDF xmlns:r="{RDF}"><r:Description xmlns:i="{IPTC}" '
    f'i:DigitalSourceType="{SOURCE_TYPES}trainedAlgorithmicMedia"/></r:RDF>'
).encode()
"""A mark that leaves no room for the words of another one."""


def tiff(path: Path, xmp: bytes, codec: TileCodec | None = None) -> None:
    pixels, codec = np.ascontiguousarray(picture(8)), codec or Jpeg()
    write_pyramid(path, codec.tiles(pixels), pixels.shape, 0.5, codec, xmp)


def deflated(path: Path, xmp: bytes) -> None:
    tiff(path, xmp, Deflate())


def png(path: Path, xmp: bytes) -> None:
    plain = encode_png(np.ascontiguousarray(picture(8)))
    text = b"XML:com.adobe.xmp" + bytes(5) + xmp
    other = chunk(b"iTXt", b"Comment" + bytes(5) + TEXT)
    marked = mark_png(plain, MARK) if xmp == mark_xmp(MARK) else None
    data = marked or plain[:HEAD] + chunk(b"iTXt", text) + plain[HEAD:]
    path.write_bytes(data[:HEAD] + other + data[HEAD:])


def jpeg(path: Path, xmp: bytes) -> None:
    Image.fromarray(picture(8)).save(path, "JPEG", xmp=xmp)


def webp(path: Path, xmp: bytes) -> None:
    Image.fromarray(picture(8)).save(path, "WEBP", xmp=xmp)


WRITERS: dict[str, Callable[[Path, bytes], None]] = {
    "tiff": tiff, "deflated.tiff": deflated, "png": png, "jpg": jpeg, "webp": webp,
}  # fmt: skip


def pixels_of(path: Path) -> UInt8:
    if path.suffix == ".tiff":
        with openslide.open_slide(path) as slide:
            return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("xmp", "kept"),
    [
        (mark_xmp(MARK), MARK),
        (FOREIGN, PARTLY),
        (SHORT, UNNAMED),
        (FOREIGN.replace(b"compositeWithTrained", b"compositeWithPainted"), None),
    ],
)
def test_a_copy_keeps_the_mark_alone(
    kind: str, xmp: bytes, kept: Mark | None, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    WRITERS[kind](path, xmp)
    size = path.stat().st_size
    shown = pixels_of(path)
    apply(path, redactions(path))
    assert path.stat().st_size == size
    assert mark_of(path) == kept
    assert TEXT not in path.read_bytes()
    assert (pixels_of(path) == shown).all()


def test_a_copy_of_a_marked_field_is_the_field(tmp_path: Path) -> None:
    tiff(tmp_path / "slide.tiff", mark_xmp(Mark("toy/1", "f")))
    assert redactions(tmp_path / "slide.tiff") == []
