"""Slides of every format give the right pixels and sizes, or are refused with the remedy."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from services.ingest.tissue import find_tissue, stain_of, tissue_mask
from shared.contracts.ingest import SlideRecord, label_map_key, patches_key, slide_key
from shared.errors import InputError
from shared.imaging import pictures, slide_files
from shared.imaging import slide as slides
from shared.imaging.label_map import LabelMap
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import Bounds, Slide
from shared.storage import DirectoryStore
from tests.formats.slide_files import (
    BOXES,
    ingest,
    picture,
    resolution,
    write_bomb,
    write_leica,
    write_outlines,
    write_tiff,
)

# --- Pixels that are not square ---------------------------------------------------------------


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (0.5, 0.526)])
def test_masks_lie_on_the_tissue_whatever_the_shape_of_pixels(
    tmp_path: Path, mpp: tuple[float, float]
) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = write_tiff(tmp_path / "a.tiff", picture(*mpp), **resolution(*mpp))
    status = ingest(store, path, write_outlines(tmp_path / "a.geojson", *mpp))
    assert status.state == "done", status.failed
    record = store.get_model(slide_key("s"), SlideRecord)
    assert (record.mpp, record.mpp_y) == (pytest.approx(mpp[0]), pytest.approx(mpp[1]))
    with LabelMap(store.local(label_map_key("s", "c"))) as labels:
        assert (labels.width, labels.height) == (512, 512)
        assert np.bincount(labels.whole().ravel(), minlength=3)[1:] == pytest.approx(
            [192 * 384] * 2, rel=0.01
        )
    regions = list(RegionIndex(store, load_region_set(store, "c"), "train"))
    assert regions
    for region in regions:
        seen = np.where(region.image[..., 0] > 235, 0, np.where(region.image[..., 0] > 170, 1, 2))
        edges = np.abs(np.diff(region.labels.astype(int), axis=1, prepend=0)) > 0
        assert (seen == region.labels)[~edges].mean() > 0.99
        assert (seen == region.labels).mean() > 0.98
    with Image.open(store.local(slide_key("s", "thumbnail.png"))) as small:
        assert small.width == small.height
    table = pq.read_table(store.local(patches_key("c", "s"))).to_pydict()
    xs, ys = np.array(table["x"]) * mpp[0], np.array(table["y"]) * mpp[1]
    assert len(xs) == 36
    for left, top, shares in zip(xs, ys, table["fractions"], strict=True):
        cover = [
            max(0, min(left + 64, box[2]) - max(left, box[0]))
            * max(0, min(top + 64, box[3]) - max(top, box[1]))
            / 64**2
            for box in BOXES.values()
        ]
        assert shares[1:] == pytest.approx(cover, abs=0.04)


# --- Resolution -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "352.8 µm per pixel (72 dpi"),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, "264.6 µm per pixel (96 dpi"),
        ({"resolution": (10, 10), "resolutionunit": "CENTIMETER"}, "1000 µm per pixel"),
        ({"resolution": (1e9, 1e9), "resolutionunit": "CENTIMETER"}, "1e-05 µm per pixel"),
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, "states no resolution"),
        ({}, "states no resolution"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", [{"tile": (128, 128)}, {"tile": None, "rowsperstrip": 16}])
def test_absurd_resolutions_count_as_none_and_mpp_overrides(
    tmp_path: Path, tags: dict[str, Any], said: str, layout: dict[str, Any]
) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), **tags, **layout)
    with pytest.raises(InputError, match="pass --mpp") as caught:
        Slide.open(path)
    assert said in str(caught.value)
    with Slide.open(path, 0.5) as slide:
        assert (slide.mpp, slide.mpp_y, slide.stated_mpp) == (0.5, 0.5, None)


def test_mpp_overrides_a_credible_statement_and_the_result_says_so(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = write_tiff(tmp_path / "a.tif", picture(), **resolution(2.0))
    status = ingest(store, path, mpp=1.0)
    assert store.get_model(slide_key("s"), SlideRecord).mpp == 1.0
    assert status.result is not None
    assert status.result["resolution_overridden"] == {"s": "1 instead of 2 µm/px"}
    path = write_tiff(
        tmp_path / "b.tif", picture(1), resolution=(10000, 5000), resolutionunit="CENTIMETER"
    )
    status = ingest(DirectoryStore(tmp_path / "other"), path, mpp=1.0)
    assert status.result is not None
    assert status.result["resolution_overridden"] == {"s": "1 instead of 1 × 2 µm/px"}


def test_a_stated_objective_is_offered(tmp_path: Path) -> None:
    text = "Aperio Image Library v12.0.15\r\n512x512 [0,0 512x512] (128x128) |AppMag = 40"
    path = write_tiff(tmp_path / "a.svs", picture(), description=text)
    with pytest.raises(InputError, match=r"states 40x: pass --mpp 0\.25"):
        Slide.open(path)


def test_a_leica_slide_states_its_bounds(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", picture(), 1000, 600, 4000, 3000)
    with Slide.open(path) as slide:
        assert slide.vendor == "leica"
        assert (slide.width, slide.height) == (4000, 3000)
        assert slide.bounds == Bounds(1000, 600, 512, 512)
        assert np.array_equal(slide.read(1000, 600, (64, 64), 0.5), picture()[:64, :64])
    with Slide.open(write_tiff(tmp_path / "b.tif", picture()), 1.0) as slide:
        assert slide.bounds is None


# --- Memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{"tile": (256, 256)}, {"tile": None, "rowsperstrip": 4}])
def test_a_slide_without_pyramid_is_read_in_blocks(
    tmp_path: Path, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slides, "BLOCK_PIXELS", 1 << 16)
    monkeypatch.setattr(slides, "BLOCK_WIDTH", 256)
    image = picture(noise=20)
    path = write_tiff(tmp_path / "a.tif", image, compression="zlib", **layout)
    source = open_source(path)
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(slides, "WINDOW_PIXELS", 1 << 16)

    class Watched(type(source)):  # type: ignore[misc]
        def read_region(self, location: Any, level: int, size: tuple[int, int]) -> Any:
            sizes.append(size)
            return super().read_region(location, level, size)

    source.__class__ = Watched
    slide = Slide(path, source, 1.0)
    small, damaged = slide.thumbnail(64)
    assert damaged == 0
    assert np.abs(slide.read(8, 0, (63, 64), 8.0).astype(int) - small[:, 1:]).max() <= 1
    assert max(width * height for width, height in sizes) <= 1 << 16
    assert len(sizes) >= 4
    expected = image.reshape(64, 8, 64, 8, 3).mean((1, 3))
    assert np.abs(small - expected).max() <= 1


def test_a_small_file_that_declares_a_huge_slide_is_refused(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "bomb.tif", 300_000)
    assert path.stat().st_size < 200_000
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=0.25)
    assert "300000×300000 px and no level coarse enough" in status.failed["s"]
    assert "pyramidal TIFF" in status.failed["s"]


# --- Plain images -----------------------------------------------------------------------------


def declared_png(path: Path, side: int) -> Path:
    """Write a PNG that declares side × side px and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("side", [22_361, 100_000])
def test_plain_images_have_one_stated_limit(tmp_path: Path, side: int) -> None:
    path = declared_png(tmp_path / "bomb.png", side)
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=0.5)
    assert "at most 500 megapixels" in status.failed["s"]
    assert "vips tiffsave" in status.failed["s"]


def test_pillows_own_limit_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    with Slide(path, slide_files.open_source(path), 1.0) as slide:
        assert np.array_equal(slide.read(0, 0, (512, 512), 1.0), picture())
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(pictures, "MAX_PLAIN_PIXELS", 1000)
    with pytest.raises(InputError, match="512×512 px"):
        slide_files.open_source(path)


def test_blank_and_dark_fields() -> None:
    rng = np.random.default_rng(0)
    blank = (244 + rng.normal(0, 2, (256, 256, 3))).clip(0, 255).astype(np.uint8)
    assert not tissue_mask(blank, 8.0).any()
    dark = rng.integers(0, 40, (256, 256, 3)).astype(np.uint8)
    assert stain_of(dark, tissue_mask(dark, 8.0)) == "other"


def test_a_grey_picture_is_refused_as_one(tmp_path: Path) -> None:
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    with pytest.raises(InputError, match="is a grey picture, but tissue is found by its colour"):
        find_tissue("a.tif", grey, 8.0, any_stain=True)


def test_12_bits_in_16_are_refused_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture().astype(np.uint16) * 16, photometric="rgb", metadata=None)
    with Slide.open(path, 8.0) as slide:
        small, _ = slide.thumbnail(64)
    with pytest.raises(
        InputError, match=r"a\.tif is almost black: its highest value is 1\d of 255"
    ):
        find_tissue("a.tif", small, 8.0, any_stain=True)


def test_16_bit_grey_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(path)
    with pytest.raises(InputError, match="8 bits per channel"):
        Slide.open(path, 1.0)


# --- Tissue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saturation", [1.0, 0.3])
def test_a_field_without_glass_is_all_tissue(saturation: float) -> None:
    image = picture()[64:448, 64:448].astype(float)
    grey = image.max(-1, keepdims=True)
    field = (grey + (image - grey) * saturation).clip(0, 255).astype(np.uint8)
    assert tissue_mask(field, 1.0).mean() > 0.99
    assert tissue_mask(np.full((128, 128, 3), (225, 150, 190), np.uint8), 1.0).all()
    assert not tissue_mask(np.full((64, 64, 3), 244, np.uint8), 1.0).any()
