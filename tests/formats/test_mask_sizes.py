"""Masks of the whole slide, of its scanned area or of a level, and masks that fit none of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from services.ingest.annotations.outlines import SlideGeometry
from shared.errors import InputError
from tests.formats.drawing import draw
from tests.formats.test_masks import CLASSES, HEIGHT, SLIDE, WIDTH, Array, save, truth


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (truth().T, "80×120 px.* slide of 120×80 px: is it transposed"),
        (truth()[:60], "120×60 px.* another aspect"),
        (np.kron(truth(), np.ones((2, 2), np.uint8)), "240×160 px.* larger"),
        (np.ones((1, 1), np.uint8), "1×1 px.* 120 of the slide's, and 32"),
        (np.ones((2, 3), np.uint8), "3×2 px.* 40 of the slide's"),
        (np.pad(truth(), ((0, 1), (0, 1))), "121×81 px.* larger. Was it padded.* 120×80 px"),
        (truth()[:, :117], "117×80 px.* covers 1.026×1 of .* With 1×1 it must have 120×80 px"),
        (np.pad(truth()[::4, ::4], ((0, 4), (0, 2))), "32×24 px.* With 4×4 it must have 30×20 px"),
    ],
)
def test_masks_that_do_not_fit(labels: Array, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        draw(save(tmp_path / "a.png", labels), CLASSES, slide=SLIDE)


@pytest.mark.parametrize(
    ("slide", "mask", "fits"),
    [
        ((900, 900), (768, 768), False),  # cropped to whole tiles
        ((642, 510), (634, 502), False),  # cropped by 8 px
        ((900, 900), (192, 192), False),  # a quarter, cropped
        ((900, 900), (225, 225), True),
        ((900, 900), (455, 455), True),  # at 0.5 µm/px
        ((642, 510), (87, 69), True),  # any factor, and the shape of the slide
    ],
)
def test_a_mask_has_a_credible_factor(
    slide: tuple[int, int], mask: tuple[int, int], fits: bool, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.png", np.ones(mask[::-1], np.uint8))
    geometry = SlideGeometry(*slide, 0.2528, 0.2528)
    if fits:
        assert draw(path, CLASSES, slide=geometry)[0].all()
    else:
        with pytest.raises(InputError, match=r"Was it padded or cropped\? With .* it must have"):
            draw(path, CLASSES, slide=geometry)


@pytest.mark.parametrize("size", [(121, 83), (123, 81), (120, 80), (121, 80), (120, 81)])
def test_a_smaller_mask_may_be_rounded_in_any_way(size: tuple[int, int], tmp_path: Path) -> None:
    slide = SlideGeometry(*size, 1.0, 1.0)
    for round_ in (math.floor, math.ceil, round):
        small = np.zeros((round_(size[1] / 4), round_(size[0] / 4)), np.uint8)
        small[10:15, 15:25] = 1
        labels, _ = draw(save(tmp_path / "a.png", small), CLASSES, slide=slide)
        off = 4 * math.ceil((size[0] % 4 + size[1] % 4) / 8)  # at most a pixel of the mask
        inner = np.zeros(labels.shape, np.uint8)
        inner[40 + off : 60 - off, 60 + off : 100 - off] = 1
        outer = np.zeros(labels.shape, np.uint8)
        outer[40 - off : 60 + off, 60 - off : 100 + off] = 1
        assert (labels[inner > 0] == 1).all()
        assert not labels[outer == 0].any()


def test_a_mask_may_have_the_size_of_a_padded_level(tmp_path: Path) -> None:
    padded = np.pad(truth()[::4, ::4], ((0, 4), (0, 2)))
    slide = SlideGeometry(
        WIDTH, HEIGHT, 1.0, 1.0, downsamples=(1.0, 4.0), level_sizes=((WIDTH, HEIGHT), (32, 24))
    )
    labels, _ = draw(save(tmp_path / "a.png", padded), CLASSES, slide=slide)
    assert np.array_equal(labels, np.kron(truth()[::4, ::4], np.ones((4, 4), np.uint8)))


def test_a_mask_finer_than_its_slide_is_its_label_map(tmp_path: Path) -> None:
    slide = SlideGeometry(119, 79, 1.01, 1.01)
    path = save(tmp_path / "a.png", truth())
    labels, _ = draw(path, CLASSES, slide=slide, mpp=1.0)
    assert np.array_equal(labels, truth())
    with pytest.raises(InputError, match=r"120×80 px.* larger"):
        draw(path, CLASSES, slide=slide, mpp=2.0)


def test_a_mask_of_the_scanned_area(tmp_path: Path) -> None:
    slide = SlideGeometry(300, 300, 1.0, 1.0, bounds=(100, 50, WIDTH, HEIGHT))
    labels, record = draw(save(tmp_path / "a.png", truth()), CLASSES, slide=slide)
    assert record["origin"] == "bounds"
    assert np.array_equal(labels[50 : 50 + HEIGHT, 100 : 100 + WIDTH], truth())
    assert (labels > 0).sum() == 3_600
