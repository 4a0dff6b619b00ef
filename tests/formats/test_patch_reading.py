"""Patches that are read together: the pixels of single reads, and each tile decoded once."""

from __future__ import annotations

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from shared.arrays import Int64, UInt8
from shared.errors import InputError
from shared.imaging import jpeg_tiles
from shared.imaging.jpeg_tiles import JpegTiles
from shared.imaging.marks import Mark, mark_xmp
from shared.imaging.patch_cutting import PatchCutter, on_white
from shared.imaging.patch_reading import read_patches
from shared.imaging.ranged_slide import open_ranged
from shared.imaging.slide import DamagedError, Slide
from shared.imaging.tiff_facts import XMP
from shared.storage import DirectoryStore, ObjectNotFoundError, StoreView

WIDTH, HEIGHT, TILE = 700, 600, 128


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG pyramid of two levels, whose second is not quite half as wide."""
    path = tmp_path_factory.mktemp("pyramid") / "slide.tif"
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), np.uint8)
    pixels = np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    with tifffile.TiffWriter(path) as tiff:
        for step, kind in ((1, 0), (2, 1)):
            tiff.write(
                pixels[::step, ::step][: HEIGHT // step, : WIDTH // step - step // 2],
                tile=(TILE, TILE), compression="jpeg", photometric="ycbcr", subfiletype=kind,
                resolution=(20000 / step, 20000 / step), resolutionunit="CENTIMETER",
                compressionargs={"level": 90}, subsampling=(2, 2), metadata=None,
            )  # fmt: skip
    return path


def grid(step: int, width: int = WIDTH, height: int = HEIGHT) -> Int64:
    return np.array(
        [(x, y) for y in range(-40, height, step) for x in range(-40, width, step)], np.int64
    )


def read_all(slide: Slide, corners: Int64, side: int, mpp: float) -> tuple[UInt8, int]:
    out = np.zeros((len(corners), side, side, 3), np.uint8)
    damaged = 0
    for batch in read_patches(slide, corners, side, mpp, 7):
        out[batch.rows] = batch.images
        damaged += batch.damaged
    return out, damaged


@pytest.mark.parametrize(
    ("side", "mpp", "step", "most"),
    [(96, 0.5, 61, 0), (64, 0.9, 90, 0), (64, 1.003, 77, 3)],
    ids=["as stored", "averaged", "between the pixels of a level"],
)
def test_patches_are_what_openslide_reads(
    pyramid: Path, side: int, mpp: float, step: int, most: int
) -> None:
    corners = grid(step)
    with Slide.open(pyramid) as slide:
        assert slide.vendor == "generic-tiff"
        found, damaged = read_all(slide, corners, side, mpp)
        known = np.stack([slide.read(x, y, (side, side), mpp) for x, y in corners.tolist()])
    assert not damaged
    inside = np.all((corners >= 0) & (corners + 2 * side * mpp <= (WIDTH, HEIGHT)), 1)
    assert inside.sum() > 10
    difference = np.abs(found.astype(int) - known)
    assert difference[inside].max() <= most
    if not most:
        assert difference.max() == 0  # at the edges too, where all beyond is white


def test_each_tile_is_decoded_once(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = imagecodecs.jpeg8_decode

    def counting(data: bytes, **options: object) -> UInt8:
        decoded.append(data)
        return np.asarray(decode(data, **options))

    monkeypatch.setattr(jpeg_tiles.imagecodecs, "jpeg8_decode", counting)
    with openslide.OpenSlide(pyramid) as source:
        cutter = PatchCutter(pyramid, source)
        corners = [(x, y) for y in range(0, 500, 32) for x in range(0, 600, 32)]
        for start in range(0, len(corners), 16):
            part = corners[start : start + 16]
            out = np.empty((len(part), 64, 64, 3), np.uint8)
            assert not cutter.cut(part, 0, (64, 64), out)
    assert len(decoded) == len(set(decoded)) == -(-(480 + 64) // TILE) * -(-(576 + 64) // TILE)


def test_damage_costs_the_patches_that_touch_it(pyramid: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(pyramid) as tiff:
        offset, count = (
            tiff.pages.first.dataoffsets[7],
            tiff.pages.first.databytecounts[7],
        )  # column 1, row 1
    data = bytearray(pyramid.read_bytes())
    data[offset : offset + count] = bytes(count)
    path = tmp_path / "damaged.tif"
    path.write_bytes(data)
    corners = np.array([(x, y) for y in (0, 128, 256) for x in (0, 128, 256)], np.int64)
    with Slide.open(path) as slide, Slide.open(pyramid) as whole:
        found, damaged = read_all(slide, corners, TILE, 0.5)
        with pytest.raises(DamagedError):
            slide.read(128, 128, (TILE, TILE), 0.5)
        known, _ = read_all(whole, corners, TILE, 0.5)
    assert damaged == 1
    assert not found[4].any()
    rest = np.delete(np.arange(9), 4)
    assert (found[rest] == known[rest]).all()


def test_reading_can_be_left_at_any_batch(pyramid: Path) -> None:
    with Slide.open(pyramid) as slide:
        batches = read_patches(slide, grid(61), 96, 0.5, 4)
        next(batches)
        batches.close()
        assert slide.read(0, 0, (8, 8), 0.5).shape == (8, 8, 3)
        with pytest.raises(InputError, match="too coarse"):
            next(read_patches(slide, grid(61), 96, 0.1, 4))


def test_a_level_without_all_of_its_tiles_is_left_to_openslide(pyramid: Path) -> None:
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as tiff:
        tag = tiff.pages[1].tags["TileByteCounts"]
        data[tag.valueoffset : tag.valueoffset + 4] = bytes(4)
    path = pyramid.with_name("sparse.tif")
    path.write_bytes(data)
    with openslide.OpenSlide(path) as source:
        assert JpegTiles(path, source).levels == {0}


def test_white_shows_through_what_is_transparent() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    assert on_white(rgba)[0, :, 0].tolist() == [255, 127, 0]


class ServerStore(StoreView):
    """A store whose objects must be fetched, and which counts the bytes that are."""

    fetched = 0

    def fetches(self) -> bool:
        return True

    def local(self, key: str) -> Path:
        raise AssertionError("the whole slide was fetched")

    def read_range(self, key: str, start: int, length: int) -> bytes:
        data = super().read_range(key, start, length)
        self.fetched += len(data)
        return data


def test_a_window_of_a_slide_on_a_server_takes_only_its_tiles(tmp_path: Path) -> None:
    store = ServerStore(DirectoryStore(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (1536, 1536, 3), np.uint8)
    path = tmp_path / "a.tif"
    xmp = mark_xmp(Mark("toy/1", "f"))
    tifffile.imwrite(
        path, pixels, tile=(128, 128), compression="jpeg", photometric="ycbcr",
        extratags=[(XMP, 1, len(xmp), xmp, True)],
    )  # fmt: skip
    slide = open_ranged(store, "a.tif")
    assert slide is not None
    assert slide.mark == Mark("toy/1", "f")
    with slide, openslide.OpenSlide(path) as source:
        assert slide.level_dimensions == source.level_dimensions
        found, known = (s.read_region((200, 900), 0, (300, 100)) for s in (slide, source))
        assert np.array_equal(found, known)
        assert store.fetched < path.stat().st_size / 4
        (tmp_path / "a.tif").unlink()  # whoever looks on learns that the slide is gone
        with pytest.raises(ObjectNotFoundError):
            slide.read_region((1200, 0), 0, (300, 100))
        assert slide.failed


def test_what_is_no_pyramid_of_jpeg_tiles_is_fetched_whole(tmp_path: Path) -> None:
    store = ServerStore(DirectoryStore(tmp_path))
    tifffile.imwrite(tmp_path / "strips.tif", np.zeros((300, 300, 3), np.uint8))
    (tmp_path / "broken.svs").write_bytes(b"II*\0 and no more")
    pixels = np.zeros((8192, 4096, 3), np.uint8)
    for name, side in (("small tiles.tif", 32), ("flat.tif", 512)):
        tifffile.imwrite(
            tmp_path / name, pixels[: 16 * side], tile=(side, side), compression="jpeg",
            photometric="ycbcr",
        )  # fmt: skip
    for key in ("strips.tif", "broken.svs", "small tiles.tif", "flat.tif"):
        assert open_ranged(store, key) is None
    assert open_ranged(DirectoryStore(tmp_path), "strips.tif") is None
