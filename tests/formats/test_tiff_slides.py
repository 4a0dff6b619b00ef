"""TIFFs of every layout give the same pixels, or are refused with the remedy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from openslide.deepzoom import DeepZoomGenerator

from shared.errors import InputError
from shared.imaging import slide_files
from shared.imaging import tiff as tiff_slides
from shared.imaging.sandboxed_slide import open_source
from shared.imaging.slide import Slide
from tests.formats.slide_files import picture, write_ome, write_tiff, ycbcr


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


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(200, 400), (250, 200), (250, 400)])
def test_a_page_of_another_shape_is_no_level(
    shape: tuple[int, int], nested: bool, tmp_path: Path
) -> None:
    image, path = picture(noise=20)[:400], tmp_path / "a.tif"
    foreign = np.full((*shape, 3), 90, np.uint8)
    third = cv2.resize(image, (170, 133), interpolation=cv2.INTER_AREA)  # 512 / 3 is rounded
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate((image, foreign, third)):
            file.write(
                page, tile=(64, 64), photometric="rgb", metadata=None,
                subifds=2 if nested and not number else None, subfiletype=1 if number else 0,
            )  # fmt: skip
    with Slide.open(path, 1.0) as slide:
        for mpp, size in ((2.0, (256, 200)), (2.9, (176, 138))):
            assert slide.layout(size, mpp)[0] == 0
            exact = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            assert np.abs(slide.read(0, 0, size, mpp).astype(int) - exact).mean() < 4
        coarse = slide.downsamples[-1]
        level, span = slide.layout((170, 133), coarse)
        assert (slide.source.level_dimensions[level], span) == ((170, 133), (170, 133))
        assert np.array_equal(slide.read(0, 0, (170, 133), coarse), third)


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


@pytest.mark.parametrize("tile", [(64, 64), None])
@pytest.mark.parametrize("kind", [np.float32, np.int8, np.uint32])
def test_samples_of_other_types_are_named(tmp_path: Path, kind: Any, tile: Any) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((128, 128, 3), kind), photometric="rgb", tile=tile)
    name = np.dtype(kind).name
    with pytest.raises(InputError, match=rf"a\.tif has {name} samples.*save them as a TIFF with 8"):
        Slide.open(path, 1.0)


def test_a_fourth_sample_that_is_no_opacity_changes_no_colour(tmp_path: Path) -> None:
    image = picture(noise=20)
    tifffile.imwrite(
        tmp_path / "a.tif", np.dstack([image, image[..., 0]]), photometric="rgb", tile=(128, 128),
        extrasamples=["unspecified"], metadata=None,
    )  # fmt: skip
    source = open_source(tmp_path / "a.tif")
    window = np.asarray(source.read_region((30, 40), 0, (100, 50)))
    assert np.array_equal(window[..., :3], image[40:90, 30:130])
    assert (window[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("name", "part", "refused"),
    [
        ("second", np.s_[:200, :250], True),
        ("second", np.s_[:, :], True),
        ("second", np.s_[::4, ::4], False),
        ("second", np.s_[: 3 * 64, : 4 * 64], True),
        ("second", np.s_[:40, :20], True),  # small, but at the same resolution
        ("macro image", np.s_[:200, :250], False),
        ("level", np.s_[::2, ::2], False),
    ],
)
def test_a_second_scene_is_not_dropped(
    name: str, part: tuple[slice, slice], refused: bool, tmp_path: Path
) -> None:
    image, size = picture(noise=20), {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "axes": "YXS"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for pixels, title in ((image, "first"), (image[part], name)):
            file.write(
                np.ascontiguousarray(pixels), photometric="rgb", tile=(128, 128),
                metadata=size | {"Name": title},
            )  # fmt: skip
    if refused:
        with pytest.raises(InputError, match=r"holds 2 images .*: export each scene"):
            open_source(tmp_path / "a.ome.tif")
    else:
        assert open_source(tmp_path / "a.ome.tif").dimensions == image.shape[1::-1]
