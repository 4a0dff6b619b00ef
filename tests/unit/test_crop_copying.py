"""Copies of crops in made images: found however they are turned, and nothing else is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from shared.imaging import copying
from shared.imaging.copying import crop_copying


def texture(seed: int, side: int) -> np.ndarray:  # type: ignore[type-arg]
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 0.7)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_pasted_crop_is_found_however_it_is_turned(turns: int, mirrored: bool) -> None:
    image, crop = texture(0, 128), texture(1, 40)
    pasted = np.rot90(crop[:, ::-1] if mirrored else crop, turns)
    darker = 0.8 * pasted.astype(float) + np.random.default_rng(2).normal(0, 2, pasted.shape)
    image[37:77, 51:91] = darker.clip(0, 255).round().astype(np.uint8)
    assert crop_copying(image, crop) == 1


def test_an_unrelated_texture_is_no_copy() -> None:
    assert crop_copying(texture(0, 128), texture(1, 40)) == 0


def test_half_a_crop_is_half_copied() -> None:
    image, crop = texture(0, 128), texture(1, 64)
    image[10:74, 20:52] = crop[:, :32]
    assert crop_copying(image, crop) == 0.5


def test_smooth_blocks_do_not_count() -> None:
    image, crop = texture(0, 64), texture(1, 32)
    assert crop_copying(image, np.full_like(crop, 200)) == 0
    image[8:24, 8:40] = crop[:16]
    crop[16:] = 200
    assert crop_copying(image, crop) == 1
    assert crop_copying(np.full_like(image, 90), crop) == 0


def test_crop_copying_agrees_with_template_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    image, crop = texture(0, 48), texture(1, 32)
    grey = [cv2.cvtColor(array, cv2.COLOR_RGB2GRAY) for array in (image, crop)]
    best = [
        max(
            cv2.matchTemplate(grey[0], np.ascontiguousarray(turned), cv2.TM_CCOEFF_NORMED).max()
            for quarter in range(4)
            for turned in (np.rot90(block, quarter), np.rot90(block, quarter)[:, ::-1])
        )
        for block in (grey[1][y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16))
    ]
    for number, limit in enumerate(sorted(best, reverse=True), 1):
        monkeypatch.setattr(copying, "MIN_COPY_CORRELATION", limit - 1e-4)
        assert crop_copying(image, crop) == number / 4


def test_images_below_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller than a block of 16"):
        crop_copying(texture(0, 64), texture(1, 15))
    with pytest.raises(ValueError, match="need uint8"):
        crop_copying(texture(0, 64)[..., 0], texture(1, 16))
