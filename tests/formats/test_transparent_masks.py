"""Transparent pixels of masks without an alpha channel are background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.formats.drawing import draw
from tests.formats.test_masks import CLASSES, SLIDE, truth


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
