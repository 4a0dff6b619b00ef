"""Transparent pixels of masks without an alpha channel are background."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import InputError
from shared.imaging.masks import open_mask
from tests.formats.drawing import draw
from tests.formats.test_masks import CLASSES, SLIDE, truth


def test_a_picture_that_covers_a_part_of_its_screen_is_refused(tmp_path: Path) -> None:
    """GIF allows that, and the picture would be taken for the whole."""
    path = tmp_path / "a.gif"
    Image.fromarray(np.ones((40, 60), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 120, 80)
    path.write_bytes(data)
    with pytest.raises(InputError, match="120×80 px, of which its picture covers 60×40"):
        open_mask(path)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize("palette", [True, False])
def test_a_transparent_value_is_background(palette: bool, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(truth())
    if palette:
        image = image.convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert (truth() == 2).any()
    image.save(tmp_path / f"a{suffix}", transparency=2)
    labels, _ = draw(tmp_path / f"a{suffix}", CLASSES, slide=SLIDE, label_format="mask")
    assert np.array_equal(labels, np.where(truth() == 2, 0, truth()))


def test_a_value_that_is_half_transparent_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(truth()).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png", transparency=bytes([255, 100, 255]))
    with pytest.raises(InputError, match="half-transparent"):
        draw(tmp_path / "a.png", CLASSES, slide=SLIDE, label_format="mask")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=bytes([255, 255, 255, 100]))
    labels, _ = draw(tmp_path / "a.png", CLASSES, slide=SLIDE, label_format="mask")
    assert np.array_equal(labels, truth()), "no pixel has the value that is half transparent"
