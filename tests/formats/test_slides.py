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
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from services.embed.stage import EmbedStage
from services.ingest.stage import IngestStage
from services.ingest.tissue import find_tissue, tissue_mask
from shared.contracts.base import Classes
from shared.contracts.embed import EmbedRequest, features_key
from shared.contracts.ingest import (
    IngestRequest,
    PatchGrid,
    SlideRecord,
    SlideSource,
    label_map_key,
    patches_key,
    slide_key,
)
from shared.contracts.regions import RegionRule
from shared.errors import InputError
from shared.features import read_features
from shared.imaging import pictures, slide_files
from shared.imaging import slide as slides
from shared.imaging import tiff as tiff_slides
from shared.imaging.label_map import LabelMap
from shared.imaging.region_sets import RegionIndex, load_region_set
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import Bounds, DamagedError, Slide
from shared.jobs import JobStatus, Ledger, run_job
from shared.storage import DirectoryStore
from tests.formats.slide_files import (
    BOXES,
    picture,
    resolution,
    write_bomb,
    write_leica,
    write_ome,
    write_outlines,
    write_tiff,
    ycbcr,
)

CLASSES = Classes.of("stroma", "tumor")
GRID = PatchGrid(size=64, mpp=1.0, stride=64)


def ingest(store: DirectoryStore, path: Path, labels: Path | None = None, **more: Any) -> JobStatus:
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


def embed(store: DirectoryStore, **fields: Any) -> JobStatus:
    ledger = Ledger(store)
    request = EmbedRequest(cohort="c", encoder="random", batch_size=4, **fields)
    return run_job(ledger, EmbedStage(), ledger.submit(request, replace=True))


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


# --- Formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}, (0.5, 0.25)),
        (
            {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005,
             "PhysicalSizeYUnit": "mm"},
            (0.5, 0.5),
        ),
    ],
)  # fmt: skip
def test_ome_tiff_states_its_size_and_has_its_levels(
    tmp_path: Path, spacing: dict[str, Any], expected: tuple[float, float]
) -> None:
    image = picture(noise=20)
    path = write_ome(tmp_path / "a.ome.tif", image, spacing, objective=20)
    with Slide.open(path) as slide:
        assert (slide.vendor, slide.levels, slide.objective) == ("ome-tiff", 2, 20)
        assert (slide.mpp, slide.mpp_y) == pytest.approx(expected)
        source = open_source(path)
        level_0 = np.asarray(source.read_region((30, 40), 0, (100, 50)))[..., :3]
        assert np.array_equal(level_0, image[40:90, 30:130])
        level_1 = np.asarray(source.read_region((128, 64), 1, (64, 64)))[..., :3]
        assert np.array_equal(
            level_1, image[64:192, 128:256].reshape(64, 2, 64, 2, 3).mean((1, 3)).astype(np.uint8)
        )


def test_ome_tiff_of_an_unknown_unit_states_none(tmp_path: Path) -> None:
    spacing = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 0.5}
    path = write_ome(tmp_path / "a.ome.tif", picture(), spacing)
    with pytest.raises(InputError, match="states no resolution"):
        Slide.open(path)


@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 7, "compression": "zlib"},
        {"rowsperstrip": 512, "compression": "lzw"},
        {"rowsperstrip": 16},
        {"rowsperstrip": 512},
        {"planarconfig": "separate", "rowsperstrip": 512},
        {"planarconfig": "separate", "rowsperstrip": 50, "compression": "zlib"},
        {"tile": (64, 96), "planarconfig": "separate", "compression": "zlib"},
        {"tile": (128, 128), "compression": "zstd"},
        {"tile": (128, 128), "compression": "jpegxl", "compressionargs": {"lossless": True}},
        {"tile": (128, 128), "compression": "jpeg2000", "compressionargs": {"reversible": True}},
        {"rowsperstrip": 64, "compression": "zlib", "predictor": True, "bigtiff": True},
        {"byteorder": ">", "rowsperstrip": 64, "compression": "zlib"},
    ],
)
def test_every_layout_of_tiff_gives_the_same_pixels(
    tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_slides, "RAW_BYTES", 10_000)
    image = picture(noise=20)[:500, :460]
    separate = options.get("planarconfig") == "separate"
    stored = np.moveaxis(image, -1, 0) if separate else image
    options = {"photometric": "rgb", "metadata": None} | options
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, **options)
    with Slide(path, slide_files.open_source(path), 1.0) as slide:
        assert (slide.width, slide.height) == (460, 500)
        assert np.array_equal(slide.read(0, 0, (460, 500), 1.0), image)
        window = slide.read(450, -5, (20, 15), 1.0)  # over two edges
    assert (window[:5] == 255).all()
    assert (window[:, 10:] == 255).all()
    assert np.array_equal(window[5:, :10], image[:10, 450:])


def test_jpeg_strips_grey_palette_and_16_bit(tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ycbcr(image), rowsperstrip=64, compression="jpeg", photometric="ycbcr",
                     metadata=None)  # fmt: skip
    with Slide.open(path, 1.0) as slide:
        off = np.abs(slide.read(0, 0, (512, 512), 1.0).astype(int) - image)
        assert off.mean() < 6
    grey = image[..., 1]
    tifffile.imwrite(path, grey, rowsperstrip=64, photometric="miniswhite", metadata=None)
    with Slide.open(path, 1.0) as slide:
        assert np.array_equal(slide.read(0, 0, (512, 512), 1.0)[..., 2], 255 - grey)
    deep = image.astype(np.uint16) * 257
    tifffile.imwrite(path, deep, rowsperstrip=64, photometric="rgb", metadata=None)
    with Slide.open(path, 1.0) as slide:
        assert np.array_equal(slide.read(0, 0, (512, 512), 1.0), image)
    colors = np.zeros((3, 256), np.uint16)
    colors[0] = np.arange(256) * 257
    tifffile.imwrite(path, grey, rowsperstrip=64, photometric="palette", colormap=colors,
                     metadata=None)  # fmt: skip
    with Slide.open(path, 1.0) as slide:
        assert np.array_equal(slide.read(0, 0, (512, 512), 1.0)[..., 0], grey)


@pytest.mark.parametrize(
    ("array", "options", "said"),
    [
        (np.zeros((5, 64, 64), np.uint8), {"ome": True, "metadata": {"axes": "CYX"}}, "5 channels"),
        (np.zeros((4, 64, 64), np.uint8), {"photometric": "minisblack"}, "not one colour image"),
        (np.zeros((64, 64), np.float32), {"photometric": "minisblack"}, "float32"),
    ],
)
def test_tiffs_of_other_things_are_refused(
    tmp_path: Path, array: Any, options: Any, said: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, **options)
    with pytest.raises(InputError, match=said):
        Slide.open(path, 1.0)


def test_imagej_states_micrometres(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), imagej=True, resolution=(2, 4), metadata={"unit": "um"})
    with Slide.open(path) as slide:
        assert (slide.mpp, slide.mpp_y) == (0.5, 0.25)


def test_a_leica_slide_states_its_bounds(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", picture(), 1000, 600, 4000, 3000)
    with Slide.open(path) as slide:
        assert slide.vendor == "leica"
        assert (slide.width, slide.height) == (4000, 3000)
        assert slide.bounds == Bounds(1000, 600, 512, 512)
        assert np.array_equal(slide.read(1000, 600, (64, 64), 0.5), picture()[:64, :64])
    with Slide.open(write_tiff(tmp_path / "b.tif", picture()), 1.0) as slide:
        assert slide.bounds is None


def test_odd_sizes_are_exact_to_the_edge(tmp_path: Path) -> None:
    image = picture(noise=20)[:450, :350]
    path = write_tiff(tmp_path / "a.tif", image, tile=(256, 256), compression="zlib")
    with Slide.open(path, 1.0) as slide:
        window = slide.read(300, 400, (100, 100), 1.0)
    assert np.array_equal(window[:50, :50], image[400:, 300:])
    assert (window[50:] == 255).all()
    assert (window[:, 50:] == 255).all()


def test_zoom_tiles_of_a_tiff_that_openslide_does_not_read(tmp_path: Path) -> None:
    image = picture(noise=20)
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=16, photometric="rgb")
    zoom = DeepZoomGenerator(open_source(tmp_path / "a.tif"), 254, 1)
    tile = zoom.get_tile(zoom.level_count - 1, (1, 0))
    assert np.array_equal(np.asarray(tile), image[:255, 253:509])


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


def test_a_giant_strip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), compression="zlib", rowsperstrip=512, photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = tiff.pages.first.tags[name]
            kind = "<H" if tag.dtype == 3 else "<I"
            data[tag.valueoffset : tag.valueoffset + struct.calcsize(kind)] = struct.pack(
                kind, 60_000
            )
    path.write_bytes(data)
    with pytest.raises(InputError, match="in one piece; at most 500 megapixels"):
        Slide.open(path, 0.5)


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_truncated_plain_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert f"a.{suffix} cannot be opened" in status.failed["s"]
    assert "copy it again" in status.failed["s"]


def test_a_jpeg_with_lost_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path)
    data = path.read_bytes()
    path.write_bytes(data + b"trailing bytes")
    with Slide.open(path, 1.0) as slide:
        assert slide.width == 512
    path.write_bytes(data[:9000] + bytes(2000) + data[11000:])
    with pytest.raises(InputError, match=r"a\.jpg is damaged: pixels of it are lost"):
        Slide.open(path, 1.0)


def test_channels_in_pages_are_refused(tmp_path: Path) -> None:
    """As PerkinElmer's QPTIFF has fluorescence: a grey page for each channel."""
    path = tmp_path / "a.qptiff"
    with tifffile.TiffWriter(path) as file:
        for _ in range(3):
            file.write(picture()[:256, :256, 0], tile=(128, 128), metadata=None)
    with pytest.raises(InputError, match="3 images of 256×256 px: channels of fluorescence"):
        open_source(path)


def test_a_smaller_image_before_the_largest_is_refused(tmp_path: Path) -> None:
    """It would be taken for the slide, at half its scale."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for step in (2, 1):
            rgb = np.ascontiguousarray(picture()[::step, ::step])
            file.write(rgb, photometric="rgb", tile=(128, 128), metadata=None)
    with pytest.raises(InputError, match="256×256 px, and has one of 512×512 px behind it"):
        open_source(path)


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


# --- Damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["tiled", "strips", "aperio", "ome"])
@pytest.mark.parametrize("name", ["a.svs", "a.tif"])
def test_a_truncated_tiff_is_refused(tmp_path: Path, kind: str, share: float, name: str) -> None:
    path = tmp_path / name
    if kind == "ome":
        write_ome(path, picture(), {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0})
    else:
        with tifffile.TiffWriter(path) as file:
            layout = {"rowsperstrip": 64} if kind == "strips" else {"tile": (128, 128)}
            text = "Aperio Image Library v12\r\n512x512 |AppMag = 20|MPP = 1" * (kind == "aperio")
            for image in (picture(), picture()[::4, ::4].copy()):
                file.write(image, photometric="rgb", description=text, metadata=None, **layout)
    Slide.open(path, 1.0).close() if kind != "strips" or name == "a.tif" else None
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert name in status.failed["s"]
    assert "damaged or incomplete" in status.failed["s"].replace(", i", " or i")
    assert "opy it again" in status.failed["s"]


def test_a_slide_with_zeros_at_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        text = "Aperio Image Library v12\r\n512x512 |AppMag = 20|MPP = 1"
        for image in (picture(), picture()[::4, ::4].copy()):
            file.write(image, photometric="rgb", tile=(128, 128), description=text, metadata=None)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    status = ingest(DirectoryStore(tmp_path / "store"), path, mpp=1.0)
    assert status.state == "failed"
    assert "Copy it again" in status.failed["s"] or "copy it again" in status.failed["s"]


@pytest.mark.parametrize("suffix", [".svs", ".ndpi", ".scn", ".mrxs", ".dcm", ".czi"])
def test_a_plain_image_under_a_scanners_name_is_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    path = (tmp_path / "a.png").rename(tmp_path / f"a{suffix}")
    said = "needs its folder a beside it" if suffix == ".mrxs" else "damaged"
    with pytest.raises(InputError, match=said):
        Slide.open(path, 1.0)


def damage(path: Path, page: int, tiles: list[int]) -> None:
    """Spoil tiles of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        offsets, counts = tiff.pages[page].dataoffsets, tiff.pages[page].databytecounts  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    for tile in tiles:
        data[offsets[tile] : offsets[tile] + counts[tile]] = bytes(counts[tile])
    path.write_bytes(data)


def pyramid(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        common: dict[str, Any] = {
            "tile": (64, 64), "photometric": "ycbcr", "compression": "jpeg", "metadata": None,
        }  # fmt: skip
        file.write(ycbcr(picture()), **common, **resolution(1.0))
        small = picture().reshape(64, 8, 64, 8, 3).mean((1, 3)).astype(np.uint8)
        file.write(ycbcr(small), subfiletype=1, **common, **resolution(8.0))
    return path


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("kind", [np.float32, np.int8, np.uint32])
def test_samples_of_other_types_are_named(tmp_path: Path, kind: Any, tile: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((128, 128, 3), kind), photometric="rgb", tile=tile)
    name = np.dtype(kind).name
    with pytest.raises(InputError, match=rf"a\.tif has {name} samples.*save them as a TIFF with 8"):
        Slide.open(path, 1.0)


def test_a_damaged_tile_costs_its_patches_and_regions(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    path = pyramid(tmp_path / "a.tif")
    labels = write_outlines(tmp_path / "a.geojson", 1, 1)
    assert ingest(store, path, labels, regions=RegionRule(size=128, mpp=1.0)).state == "done"
    whole = {r.key for r in RegionIndex(store, load_region_set(store, "c"), "train")}
    damage(path, 0, [8 * 2 + 3])  # x 192 to 256, y 128 to 192: one patch of the grid
    other = DirectoryStore(tmp_path / "other")
    status = ingest(other, path, labels, max_damaged=0.9)
    assert status.state == "done", status.failed
    assert status.result is not None
    share = float(status.result["damaged"]["s"].rstrip("%")) / 100
    kept = {r.key for r in RegionIndex(other, load_region_set(other, "c"), "train")}
    touching = {
        key for key in whole
        if (x := int(key.split("_")[1])) < 256 and x + 128 > 192
        and (y := int(key.split("_")[2])) < 192 and y + 128 > 128
    }  # fmt: skip
    assert touching
    assert kept == whole - touching
    assert share == pytest.approx(len(touching) / len(whole), abs=1e-4)

    status = embed(other)
    assert status.state == "done", status.failed
    assert status.result is not None
    assert status.result["damaged_patches"] == {"s": 1}
    assert status.result["patches"] == 35
    found = read_features(other.local(features_key("random", "c", "s")))
    assert len(found.coords) == len(found.features) == 35
    assert (192, 128) not in {tuple(corner) for corner in found.coords.tolist()}
    assert embed(store, max_damaged=0.02).state == "failed"  # store names the same, damaged file

    assert ingest(other, path, labels, max_damaged=0.0).state == "failed"


def test_features_around_damage_are_those_of_the_whole_slide(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif")
    store = DirectoryStore(tmp_path / "store")
    ingest(store, path)
    assert embed(store).state == "done"
    whole = read_features(store.local(features_key("random", "c", "s")))
    damage(path, 0, [8 * 2 + 3, 8 * 5 + 5])
    other = DirectoryStore(tmp_path / "other")
    assert ingest(other, path).state == "done"
    assert embed(other, max_damaged=0.1).state == "done"
    part = read_features(other.local(features_key("random", "c", "s")))
    kept = [tuple(c) not in {(192, 128), (320, 320)} for c in whole.coords.tolist()]
    assert np.array_equal(part.coords, whole.coords[kept])
    np.testing.assert_allclose(part.features, whole.features[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"tile": None, "rowsperstrip": 64}])
def test_damage_of_a_slide_without_pyramid_is_no_tissue(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), compression="jpeg", **layout, **resolution(1))
    damage(path, 0, [8 * 2 + 3 if "rowsperstrip" not in layout else 2])
    with Slide.open(path) as slide:
        with pytest.raises(DamagedError, match=r"a\.tif cannot be read at"):
            slide.read(192, 128, (64, 64), 1.0)
        assert slide.read(64, 64, (64, 64), 1.0).mean() == pytest.approx(188, abs=5)
        small, damaged = slide.thumbnail(512, 0.2)
    assert damaged == pytest.approx(1 / 64 if "rowsperstrip" not in layout else 1 / 8)
    assert (small[128:192, 192:256] == 255).all()
    store = DirectoryStore(tmp_path / "store")
    status = ingest(store, path, max_damaged=0.2)
    assert status.result is not None
    assert status.result["damaged"] == {"s": f"{damaged:.2%}"}
    refused = ingest(DirectoryStore(tmp_path / "other"), path, max_damaged=0.01)
    assert "damaged in more than 0.01 of its area" in refused.failed["s"]


# --- Tissue -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saturation", [1.0, 0.3])
def test_a_field_without_glass_is_all_tissue(saturation: float) -> None:
    image = picture()[64:448, 64:448].astype(float)
    grey = image.max(-1, keepdims=True)
    field = (grey + (image - grey) * saturation).clip(0, 255).astype(np.uint8)
    assert tissue_mask(field, 1.0).mean() > 0.99
    assert tissue_mask(np.full((128, 128, 3), (225, 150, 190), np.uint8), 1.0).all()
    assert not tissue_mask(np.full((64, 64, 3), 244, np.uint8), 1.0).any()
