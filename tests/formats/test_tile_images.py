"""Images of tiles as they are read: upright, and RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import InputError
from shared.imaging.tile_images import read_upright


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_tiles_are_laid_on_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (10, 10, 10, 255))
    image.paste((10, 10, 10, 0), (0, 0, 32, 64))
    path = tmp_path / "t.png"
    picture = image.convert(mode) if mode != "P" else image.quantize(4)
    picture.save(path)
    read = read_upright(path)
    assert read.transparent
    assert (read.pixels[:, :32] == 255).all()
    assert np.abs(read.pixels[:, 32:].astype(int) - 10).max() < 3
    image.putalpha(255)
    image.save(path)
    assert read_upright(path).transparent is False


def test_colours_that_are_not_rgb_are_read_or_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8))
    for mode in ("L", "CMYK", "LAB"):
        image.convert(mode).save(tmp_path / f"{mode}.tif")
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_upright(tmp_path / "CMYK.tif").pixels, np.asarray(image))
    grey = read_upright(tmp_path / "L.tif").pixels
    np.testing.assert_array_equal(grey, np.asarray(image.convert("L").convert("RGB")))
    np.testing.assert_array_equal(read_upright(tmp_path / "deep.png").pixels, grey)
    with pytest.raises(InputError, match=r"LAB\.tif has the colours of CIELAB"):
        read_upright(tmp_path / "LAB.tif")
